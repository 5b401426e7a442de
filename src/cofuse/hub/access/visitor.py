"""Who asks: found from a token or a session, and remembered for a moment."""

from __future__ import annotations

import time
from dataclasses import dataclass

from sqlalchemy import select

from ..database import Database, Session, Token
from ..faults import Denied, Unauthenticated
from ..remembered import Remembered
from .roles import Role
from .tokens import digest, good


@dataclass(frozen=True, slots=True)
class Visitor:
    """An account as a request has it: never more than its token's scope.

    Attributes:
        account: its id; None for nobody.
        name: its name.
        scope: the token's.
        role: the account's on the whole hub, at most the scope.
        token: the token's id.
        csrf: what forms of the session carry; None where the request brought a token itself.
    """

    account: int | None = None
    name: str = ""
    scope: Role = Role.READ
    role: Role = Role.NONE
    token: int | None = None
    csrf: str | None = None

    def known(self) -> int:
        """The account's id.

        Raises:
            Unauthenticated: nobody has said who they are.
        """
        if self.account is None:
            raise Unauthenticated("a token is needed", hint="cofuse login URL; or send: Authorization: Bearer TOKEN")
        return self.account

    def must(self, role: Role) -> None:
        """Refuse who has less than a role on the whole hub.

        Raises:
            Unauthenticated, Denied: it has.
        """
        self.known()
        if self.role < role:
            raise Denied("not allowed", got=f"{self.name}: {self.role.word}", expected=f"{role.word}, on the whole hub")


NOBODY = Visitor()


class Visitors:
    """Visitors by their secrets; an answer is half a second old at most, and never outlives a revocation made here."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._seen = Remembered[Visitor | None](lambda: database.changes)

    def remembered(self, secret: str) -> tuple[Visitor | None] | None:
        """Whose a secret is, if that is known without asking the database."""
        return self._seen.known(digest(secret))

    def token(self, secret: str) -> Visitor | None:
        """Whose a token is; None for a wrong one."""
        hashed = digest(secret)
        return self._seen.get(hashed, lambda: self._of_token(hashed))

    def session(self, secret: str) -> Visitor | None:
        """Whose a session of the web page is; None for a wrong one."""
        hashed = digest(secret)
        return self._seen.get(hashed, lambda: self._of_session(hashed))

    def _of_token(self, hashed: str) -> Visitor | None:
        with self._database.reading() as look:
            return _visitor(look.scalar(select(Token).where(Token.hash == hashed)))

    def _of_session(self, hashed: str) -> Visitor | None:
        with self._database.reading() as look:
            found = look.get(Session, hashed)
            return None if found is None or found.expires < time.time() else _visitor(found.token, found.csrf)


def _visitor(token: Token | None, csrf: str | None = None) -> Visitor | None:
    if token is None or not good(token, time.time()):
        return None
    scope = Role.of(token.scope)
    role = min(scope, Role.of(token.account.role))
    return Visitor(token.account_id, token.account.name, scope, role, token.id, csrf)
