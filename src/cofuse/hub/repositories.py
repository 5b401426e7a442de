"""Repositories: a model's store, its owner, and who may do what with it."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Select, delete, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session as Transaction

from ..store import Store
from .access.audit import note
from .access.roles import Role
from .access.tokens import check_name, find_account
from .access.visitor import Visitor
from .database import Account, Audit, Grant, Member, Repository
from .database.tables import Base
from .faults import Conflict, Denied, NoRepository


@dataclass(frozen=True, slots=True)
class Seen:
    """A repository as a visitor has it before them."""

    repository: Repository
    visitor: Visitor
    role: Role

    def must(self, role: Role) -> None:
        """Refuse who has less than a role here.

        Raises:
            Unauthenticated: nobody has said who they are.
            Denied: it has.
        """
        if self.role < role:
            self.visitor.known()
            raise Denied(
                "not allowed",
                where=self.repository.full_name,
                got=f"{self.visitor.name}: {self.role.word}",
                expected=role.word,
            )


def find(transaction: Transaction, visitor: Visitor, owner: str, name: str) -> Seen:
    """A repository that the visitor may see.

    Raises:
        NoRepository: there is none; or it is private to others, which is not told from there being none.
    """
    found = transaction.scalar(select(Repository).join(Account).where(Account.name == owner, Repository.name == name))
    role = Role.NONE if found is None else role_on(transaction, visitor, found)
    if found is None or role < Role.READ:
        hint = None if visitor.account else "if it is private, send a token"
        raise NoRepository("no such repository", got=f"{owner}/{name}"[:200], hint=hint)
    return Seen(found, visitor, role)


def role_on(transaction: Transaction, visitor: Visitor, repository: Repository) -> Role:
    """What a visitor may do on a repository: the highest of all their roles, at most the token's scope.

    On public repositories everybody may read, and whoever has a role on the whole hub has it here. On private ones only
    the owner, those it was granted to, and administrators of the hub.
    """
    roles = [visitor.role if not repository.private or visitor.role >= Role.ADMIN else Role.NONE]
    if not repository.private:
        roles.append(Role.READ)
    if visitor.account is not None:
        if repository.owner_id == visitor.account:
            roles.append(Role.MAINTAIN)
        for given in (
            transaction.get(Grant, (repository.id, visitor.account)),
            transaction.get(Member, (repository.owner_id, visitor.account)),
        ):
            roles.append(Role.NONE if given is None else Role.of(given.role))
    return min(visitor.scope, max(roles))


def visible(visitor: Visitor) -> Select[Repository]:
    """The repositories that a visitor may see."""
    query = select(Repository).join(Account)
    if visitor.role >= Role.ADMIN:
        return query
    own = visitor.account if visitor.account is not None else -1
    granted = select(Grant.repository_id).where(Grant.account_id == own)
    member = select(Member.organisation_id).where(Member.account_id == own)
    return query.where(
        or_(
            Repository.private.is_(False),
            Repository.owner_id == own,
            Repository.id.in_(granted),
            Repository.owner_id.in_(member),
        )
    )


def owner_for(transaction: Transaction, visitor: Visitor, owner: str | None) -> Account:
    """The account in whose name a visitor may make a repository; their own when none is named.

    Raises:
        Denied: they may not.
    """
    visitor.known()
    found = find_account(transaction, owner or visitor.name)
    own = found is not None and found.id == visitor.account and visitor.role >= Role.MAINTAIN
    if found is None or not (own or visitor.role >= Role.ADMIN or _maintains(transaction, visitor, found)):
        raise Denied(
            "repositories cannot be made in this name",
            got=owner or visitor.name,
            expected="a token of role maintain, and your own name or an organisation that you maintain",
        )
    return found


def _maintains(transaction: Transaction, visitor: Visitor, owner: Account) -> bool:
    given = transaction.get(Member, (owner.id, visitor.account))
    return given is not None and min(visitor.scope, Role.of(given.role)) >= Role.MAINTAIN


def make(
    transaction: Transaction,
    visitor: Visitor,
    folder: Path,
    name: str,
    *,
    owner: str | None = None,
    private: bool = False,
    description: str = "",
) -> Repository:
    """Make a repository and its empty store.

    Args:
        transaction: where.
        visitor: who.
        folder: that of all repositories.
        name: of the repository.
        owner: whose; the visitor's when None.
        private: only for those it is granted to.
        description: in a line or two.

    Raises:
        Conflict: there is one of that name.
        Denied: see `owner_for`.
        Invalid: the name is not allowed.
    """
    check_name(name, "repository")
    account = owner_for(transaction, visitor, owner)
    full_name, now = f"{account.name}/{name}", time.time()
    made = Repository(
        owner_id=account.id,
        name=name,
        key=secrets.token_hex(16),
        private=private,
        description=description[:2000],
        created=now,
        updated=now,
    )
    made.owner = account
    transaction.add(made)
    try:
        transaction.flush()
    except IntegrityError:
        raise Conflict("there is a repository of that name", got=full_name) from None
    # Before the row is there for others: a folder that a kill leaves without a row is in nobody's way.
    Store.init(store_folder(folder, made.key))
    note(transaction, visitor, "repository.create", made.full_name, repository=made.id, private=private)
    return made


def remove(transaction: Transaction, seen: Seen) -> None:
    """Remove a repository's rows, for a maintainer; its store's folder, which nobody finds any more, is the caller's.

    Raises:
        Denied: no maintainer.
    """
    seen.must(Role.MAINTAIN)
    own = seen.repository.id
    transaction.execute(update(Audit).where(Audit.repository_id == own).values(repository_id=None))
    for table in reversed(Base.metadata.sorted_tables):
        if table.name == "repositories":
            transaction.execute(delete(table).where(table.c.id == own))
        elif "repository_id" in table.c and table.name != "audit":
            transaction.execute(delete(table).where(table.c.repository_id == own))
        else:  # what belongs to something that belongs to it: checks, comments, shares
            for key in table.foreign_keys:
                if "repository_id" in key.column.table.c:
                    inside = select(key.column).where(key.column.table.c.repository_id == own)
                    transaction.execute(delete(table).where(key.parent.in_(inside)))
    note(transaction, seen.visitor, "repository.remove", seen.repository.full_name)


def store_folder(folder: Path, key: str) -> Path:
    """Where the store of a repository is: by its random key, never by a name that somebody chose."""
    return folder / key[:2] / f"{key}.cofuse"
