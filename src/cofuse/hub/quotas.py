"""How much is kept for whom; never more than allowed, whoever asks at once."""

from __future__ import annotations

import os
from pathlib import Path

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session as Transaction

from .database import Account, Database, Repository, Upload
from .faults import Full
from .repositories import store_folder
from .settings import Limits


def take_turn(transaction: Transaction, *accounts: int) -> None:
    """Wait until nobody else counts what these accounts have: two who looked at once would both take the last of it."""
    # In one order, so that two who wait for each other's cannot both wait for ever.
    query = select(Account.id).where(Account.id.in_(accounts)).order_by(Account.id)
    transaction.execute(query.with_for_update()).all()


def check_room(transaction: Transaction, limits: Limits, repository: Repository, more: int) -> None:
    """Refuse bytes that a repository, or its owner, has no room for; for who has taken the owner's turn.

    Counted is what the repository keeps and what is being uploaded to it; together with the owner's others, where the owner
    has a quota.

    Raises:
        Full: there is none.
    """
    quota = transaction.scalar(select(Account.quota).where(Account.id == repository.owner_id))
    which = Repository.id == repository.id if quota is None else Repository.owner_id == repository.owner_id
    kept = transaction.scalar(select(func.coalesce(func.sum(Repository.bytes), 0)).where(which)) or 0
    coming = (
        transaction.scalar(
            select(func.coalesce(func.sum(Upload.size), 0))
            .join(Repository, Repository.id == Upload.repository_id)
            .where(which)
        )
        or 0
    )
    most = limits.repository if quota is None else quota
    if kept + coming + more > most:
        raise Full(
            "the quota has no room for this",
            where=repository.full_name,
            got=f"{more} bytes, beside {kept + coming} kept or on their way",
            expected=f"at most {most} in all",
            hint="its owner can remove what is not needed, or ask an administrator for a larger quota",
        )


def charge(transaction: Transaction, limits: Limits, repository: Repository, size: int) -> None:
    """Count bytes that a repository is about to keep.

    Raises:
        Full: see `check_room`.
    """
    take_turn(transaction, repository.owner_id)
    check_room(transaction, limits, repository, size)
    count(transaction, repository, size)


def count(transaction: Transaction, repository: Repository, size: int) -> None:
    """Count bytes that a repository keeps, or with a negative number keeps no more; nothing is refused."""
    transaction.execute(update(Repository).where(Repository.id == repository.id).values(bytes=Repository.bytes + size))


def recount(database: Database, repositories: Path) -> None:
    """Count anew what every repository keeps, when nothing is under way: a kill between counting and keeping is made good.

    Args:
        database: the hub's.
        repositories: the folder of their stores.
    """
    with database.reading() as look:
        known = list(look.execute(select(Repository.id, Repository.key, Repository.bytes)))
    for number, key, counted in known:
        objects = store_folder(repositories, key) / "objects"
        if not objects.is_dir():
            continue  # it is in a bucket, and comes when it is asked for
        kept = sum(entry.stat().st_size for below in objects.glob("??") for entry in os.scandir(below))
        if kept != counted:
            with database.writing() as change:
                change.execute(update(Repository).where(Repository.id == number).values(bytes=kept))
