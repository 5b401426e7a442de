"""The body of a commit, as clients send it: one JSON object a line."""

from __future__ import annotations

import base64
import binascii
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..faults import Invalid, TooLarge
from .names import check_kind, check_name

MAX_BODY = 1 << 30  # bytes; what clients hold themselves to, too
MAX_FILE = 32 * 1024 * 1024  # of a file inside it: larger ones are uploaded beside it
MAX_LINE = MAX_FILE * 3 // 2
MAX_OPERATIONS = 25_000
MAX_TEXT = 65_536  # characters of a message
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass
class Changes:
    """What a commit changes.

    Attributes:
        summary, description: its message.
        parent: the commit that its author has seen; None: they do not say.
        places: bytes that came with it, by path.
        large: hashes of what was uploaded before, by path.
        files: paths that go.
        folders: folders that go.
    """

    summary: str = ""
    description: str = ""
    parent: str | None = None
    places: dict[str, Path] = field(default_factory=dict)
    large: dict[str, str] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)

    @property
    def message(self) -> str:
        """Its message, as git has it: a line, and what more there is to say."""
        return f"{self.summary}\n\n{self.description}".strip() if self.description else self.summary


def read(body: Path, folder: Path) -> Changes:
    """Read a commit's body; the bytes of its files are put into a folder.

    Raises:
        Invalid: it is none, or a path in it is not allowed.
        Refused: a file in it is pickled.
        TooLarge: a line of it, or all of it, is too long.
    """
    found = Changes()
    seen_header = False
    with open(body, "rb") as lines:
        for number in range(MAX_OPERATIONS + 1):
            line = lines.readline(MAX_LINE + 1)
            if not line:
                break
            if number == MAX_OPERATIONS:
                raise TooLarge("too many changes in a commit", expected=f"at most {MAX_OPERATIONS}")
            if len(line) > MAX_LINE:
                raise TooLarge(
                    "a file is too large to be sent inside a commit",
                    expected=f"at most {MAX_FILE} bytes",
                    hint="clients upload large files before they commit",
                )
            if line.strip():
                seen_header = _take(found, line, number + 1, folder) or seen_header
    if not seen_header:
        raise Invalid("a commit has a header", expected='{"key": "header", "value": {"summary": ...}}')
    return found


def _take(found: Changes, line: bytes, number: int, folder: Path) -> bool:
    """Take one line; whether it is the header."""
    where = f"line {number}"
    try:
        match json.loads(line):
            case {"key": "header", "value": {"summary": str(summary), **more}}:
                _header(found, summary, more.get("description") or "", more.get("parentCommit"), where)
                return True
            case {"key": "file", "value": {"path": str(path), "content": str(content), **rest}}:
                place = folder / str(number)
                place.write_bytes(_decoded(content, rest.get("encoding", "utf-8"), where))
                found.large.pop(_allowed(path), None)
                found.places[path] = place
            case {"key": "lfsFile", "value": {"path": str(path), "oid": str(oid), **rest}}:
                if rest.get("algo", "sha256") != "sha256" or not _SHA256.fullmatch(oid):
                    raise Invalid("not a SHA-256", where=where, got=ascii(oid[:80]))
                found.places.pop(_allowed(path), None)
                found.large[path] = oid
            case {"key": "deletedFile", "value": {"path": str(path)}}:
                found.files.append(path)
            case {"key": "deletedFolder", "value": {"path": str(path)}}:
                found.folders.append(path.rstrip("/"))
            case {"key": str(key)}:
                raise Invalid("not a change that is known", where=where, got=ascii(key[:40]))
            case _:
                raise Invalid("not a change", where=where, expected='{"key": ..., "value": {...}}')
    except (ValueError, RecursionError):
        raise Invalid("not JSON", where=where) from None
    return False


def _header(found: Changes, summary: str, description: Any, parent: Any, where: str) -> None:
    if not isinstance(description, str) or len(summary) + len(description) > MAX_TEXT or not summary.strip():
        raise Invalid("not a commit's message", where=where, expected=f"1 to {MAX_TEXT} characters")
    if parent is not None and (not isinstance(parent, str) or not re.fullmatch(r"[0-9a-f]{7,64}", parent)):
        raise Invalid("not a commit's id", where=where, got=ascii(parent)[:80])
    try:
        f"{summary}{description}".encode()
    except UnicodeEncodeError:
        raise Invalid("not a commit's message", where=where, expected="UTF-8") from None
    found.summary, found.description, found.parent = summary, description, parent


def _decoded(content: str, encoding: Any, where: str) -> bytes:
    try:
        data = base64.b64decode(content, validate=True) if encoding == "base64" else content.encode()
    except (binascii.Error, ValueError):
        raise Invalid("a file's bytes are not base64", where=where) from None
    if encoding not in ("base64", "utf-8"):
        raise Invalid("not an encoding that is known", where=where, got=ascii(encoding)[:40], expected="base64, utf-8")
    if len(data) > MAX_FILE:
        raise TooLarge(
            "a file is too large to be sent inside a commit", where=where, expected=f"at most {MAX_FILE} bytes"
        )
    return data


def _allowed(path: str) -> str:
    check_kind(path)
    return check_name(path)
