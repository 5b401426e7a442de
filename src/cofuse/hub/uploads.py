"""Uploads: bytes that arrive in pieces, are hashed on their way, and wait until something is made of them.

An upload belongs to an account and a repository. Its key is random, names its file, and is all that an LFS client has to show.
How far it is, its file says. A finished one is found again by its hash, in its own repository alone: to know a hash is not to
have the bytes.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import shutil
import time
from pathlib import Path

from sqlalchemy import event, func, select
from sqlalchemy.orm import Session as Transaction

from . import arriving
from .access.roles import Role
from .arriving import Arriving
from .database import Upload
from .faults import Conflict, Full, Invalid, Refused, TooLarge, TooOften, Unknown
from .hub import Hub
from .quotas import check_room, take_turn
from .repositories import Seen

LASTS = 7 * 86400.0  # seconds that an upload is kept after it was last sent to
STRAY = 86400.0  # after which a file that no row tells of goes
SPARE = 64 * 1024 * 1024  # bytes of disk that are left for the database
_KEY = re.compile(r"[0-9a-f]{32}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def begin(hub: Hub, transaction: Transaction, seen: Seen, size: int, sha256: str | None = None) -> Upload:
    """Begin one.

    Args:
        hub: where.
        transaction: a writing one.
        seen: for which repository, and by whom.
        size: its bytes.
        sha256: their hash, if it is known; they are refused if it is another.

    Raises:
        Denied: it takes the role contribute.
        Full: no room: on the disk, in the repository's quota, among what the account has unfinished.
        TooLarge: a single file may not have so many bytes.
        TooOften: the account has too many unfinished ones.
    """
    seen.must(Role.CONTRIBUTE)
    account, limits = seen.visitor.known(), hub.settings.limits
    if size < 0 or (sha256 is not None and not _SHA256.fullmatch(sha256)):
        raise Invalid("not an upload", got=ascii(sha256)[:80] if size >= 0 else size, expected="size, SHA-256 in hex")
    if size > limits.file:
        raise TooLarge("the file is too large", got=f"{size} bytes", expected=f"at most {limits.file}")
    _sweep(hub, transaction)
    take_turn(transaction, account, seen.repository.owner_id)
    mine = select(func.count(), func.coalesce(func.sum(Upload.size), 0)).where(
        Upload.account_id == account, Upload.done.is_(False)
    )
    count, pending = transaction.execute(mine).one()
    if count >= limits.uploads:
        raise TooOften("too many unfinished uploads", got=count, expected=f"at most {limits.uploads}", hint="wait 10 s")
    if pending + size > limits.account:
        raise Full(
            "too much is unfinished",
            got=f"{size} bytes, beside {pending}",
            expected=f"at most {limits.account}",
            hint="finish, or discard, what was begun",
        )
    check_room(transaction, limits, seen.repository, size)
    if shutil.disk_usage(hub.uploads).free < size + SPARE:
        raise Full("the hub's disk is full", got=f"{size} bytes", hint="its operator has to make room")
    now = time.time()
    made = Upload(
        key=secrets.token_hex(16),
        repository_id=seen.repository.id,
        account_id=account,
        size=size,
        sha256=sha256,
        done=False,
        created=now,
        expires=now + LASTS,
    )
    transaction.add(made)
    transaction.flush()
    return made


def find(transaction: Transaction, account: int | None, key: str) -> Upload:
    """An upload by its key; of an account, unless the key is all that is to be shown (None).

    Raises:
        Unknown: there is none; or it is somebody else's, which is not told from there being none.
    """
    found = transaction.get(Upload, key) if _KEY.fullmatch(key) else None
    if found is None or found.expires < time.time() or account not in (None, found.account_id):
        raise Unknown("no such upload", hint="it may have expired; begin another")
    return found


def finished(hub: Hub, transaction: Transaction, seen: Seen, key: str) -> Path:
    """The file of an upload that has all its bytes, verified if their hash was given; it is not to be changed.

    Raises:
        Conflict: some are missing.
        Unknown: this account has no such upload in this repository.
    """
    found = find(transaction, seen.visitor.known(), key)
    if found.repository_id != seen.repository.id:
        raise Unknown("no such upload", where=seen.repository.full_name)
    if not found.done:
        raise Conflict("the upload is not finished", got=f"{offset(hub, found)} bytes", expected=found.size)
    return hub.uploads / key


def blob(hub: Hub, repository: int, sha256: str) -> Path | None:
    """A finished upload of a repository (its id) by its hash."""
    query = select(Upload).where(
        Upload.sha256 == sha256, Upload.repository_id == repository, Upload.done, Upload.expires > time.time()
    )
    with hub.database.reading() as look:
        found = look.scalars(query.limit(1)).first()
    return None if found is None else hub.uploads / found.key


def discard(hub: Hub, transaction: Transaction, key: str) -> None:
    """Forget an upload: it is not wanted, or something has been made of it. Its file goes when the transaction has been done."""
    found = transaction.get(Upload, key)
    if found is not None:
        transaction.delete(found)
        event.listen(transaction, "after_commit", lambda _: arriving.remove(hub.uploads / key), once=True)


def offset(hub: Hub, upload: Upload) -> int:
    """How many bytes have arrived."""
    try:
        return (hub.uploads / upload.key).stat().st_size
    except FileNotFoundError:
        return 0


def settle(hub: Hub, upload: Upload, file: Arriving) -> Upload:
    """Note what has arrived: it is on the disk, and if it is all, it is what it was said to be.

    Raises:
        Refused: it is not; nothing of it is kept.
        Unknown: the upload has been discarded meanwhile.
    """
    file.settle()
    sha256 = file.sha256() if file.size == upload.size else None
    wrong = sha256 is not None and upload.sha256 not in (None, sha256)
    if wrong:
        file.cut(0)
    with hub.database.writing() as transaction:
        found = transaction.get(Upload, upload.key)
        if found is None:
            arriving.remove(file.path)
            raise Unknown("no such upload", hint="it was discarded meanwhile")
        found.expires = time.time() + LASTS
        if sha256 is not None and not wrong:
            found.done, found.sha256 = True, sha256
    if wrong:
        raise Refused(
            "the bytes are not those that were announced",
            got=f"SHA-256 {sha256}",
            expected=upload.sha256,
            hint="nothing of them was kept; send them again",
        )
    return found


def _sweep(hub: Hub, transaction: Transaction) -> None:
    """Remove uploads that have expired, and files that no row tells of."""
    now = time.time()
    gone = list(transaction.scalars(select(Upload).where(Upload.expires < now).limit(1000)))
    for upload in gone:
        discard(hub, transaction, upload.key)
    if now - hub.swept < STRAY / 24:
        return
    hub.swept = now
    known = set(transaction.scalars(select(Upload.key)))
    for path in hub.uploads.iterdir():
        with contextlib.suppress(FileNotFoundError):  # what is no upload goes when its request ends
            if path.stem not in known and path.stat().st_mtime < now - STRAY:
                path.unlink()
