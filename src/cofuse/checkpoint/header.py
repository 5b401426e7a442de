"""The safetensors header: hostile input until it has passed here.

One validator for every reader, for the store and for the hub. It goes through the header once, one regular expression
a tensor, and stops at the first thing that is wrong, so neither time nor memory depends on what a hostile file would
like. `json.loads` on the whole header would build whatever nesting the file asks for first. What passes here is a
subset of what the safetensors library accepts.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ..errors import HeaderError
from .dtypes import DTYPES

MAX_HEADER_BYTES = 16 * 1024 * 1024
MAX_TENSORS = 100_000
MAX_METADATA = 100_000  # entries
MAX_NAME = 1024
MAX_RANK = 64
MAX_COUNT = 2**63  # bits of a tensor, its empty dimensions left out: beyond it, other readers' arithmetic overflows

# Letters, digits and the punctuation that frameworks use in parameter names.
_NAME = rf"[A-Za-z0-9_][A-Za-z0-9_.\-+/:@#$=~()\[\]<>, |]{{0,{MAX_NAME - 1}}}+"
NAME = re.compile(_NAME)

# Up to Python 3.11.4 a group that repeats possessively may end inside its last, failed turn (python/cpython#106052); what
# uses such a match therefore converts it again, and takes a failure for what it is.
_SPACE = r"[ \t\n\r]*+"
_PLAIN = r'[^"\\\x00-\x1f]*+'
_STRING = rf'"({_PLAIN}(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{{4}}){_PLAIN})*+)"'
# `\d` would let other alphabets' digits through, which int() reads and JSON forbids.
_NUMBER = r"(?:0|[1-9][0-9]{0,18}+)"
_COLON = rf"{_SPACE}:{_SPACE}"
# A comma needs something to follow it; without one, the object has to end.
_NEXT = rf'{_SPACE}(?:,{_SPACE}(?=")|(?=\}}))'
_FIELD = (
    rf'"(?:dtype"{_COLON}"(\w{{1,16}}+)"'
    rf'|shape"{_COLON}\[{_SPACE}((?:{_NUMBER}(?:{_SPACE},{_SPACE}{_NUMBER}){{0,{MAX_RANK - 1}}}+)?+){_SPACE}\]'
    rf'|data_offsets"{_COLON}\[{_SPACE}({_NUMBER}){_SPACE},{_SPACE}({_NUMBER}){_SPACE}\])'
)
# Three fields in any order; each of them was there once when all groups are set.
_TENSOR = re.compile(rf'"({_NAME})"{_COLON}\{{{_SPACE}(?:{_FIELD}{_NEXT}){{3}}+\}}{_NEXT}', re.ASCII)
_METADATA = re.compile(rf"\{{{_SPACE}(?:{_STRING}{_COLON}{_STRING}{_NEXT})*+\}}")
_KEY = re.compile(_STRING + _COLON)
_OBJECT = re.compile(r"\{[^{}]{0,4096}+\}")
_SPACES = re.compile(_SPACE)
_AFTER = re.compile(_NEXT)
_PAIRS = json.JSONDecoder(object_pairs_hook=list)


class Entry(NamedTuple):
    """Where one tensor lies: dtype code, shape, and its bytes counted from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """A validated header: entries in the order of their bytes, metadata, and the raw bytes as they stood."""

    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]
    raw: bytes  # the eight bytes of length, and the JSON with its padding

    @property
    def data_start(self) -> int:
        """Offset in the file of the first tensor byte."""
        return len(self.raw)

    @property
    def data_bytes(self) -> int:
        """Bytes that all tensors take."""
        return max((e.end for e in self.entries.values()), default=0)


def read_header(fd: int, where: object) -> Header:
    """Read and validate the header of an open safetensors file.

    Raises:
        HeaderError: for whatever is wrong with it; says the file, the tensor, what was found and what is allowed.
    """
    try:
        size = os.fstat(fd).st_size
        prefix = os.pread(fd, 8, 0)
        length = int.from_bytes(prefix, "little")
        # A length that cannot be is refused below; nothing of it is read.
        text = os.pread(fd, length, 8) if length <= min(MAX_HEADER_BYTES, size - 8) else b""
    except OSError as error:
        raise HeaderError("cannot read the header", where=where, got=error.strerror) from None
    if len(prefix) < 8:
        raise HeaderError("truncated: no header length", where=where, got=f"{size} bytes", expected="at least 8")
    if length > MAX_HEADER_BYTES:
        raise HeaderError(
            "header is too long", where=where, got=f"{length} bytes", expected=f"at most {MAX_HEADER_BYTES}"
        )
    if len(text) < length:
        raise HeaderError("truncated header", where=where, got=f"{max(0, size - 8)} bytes", expected=f"{length} bytes")
    return parse_header(prefix + text, data_bytes=size - 8 - length, where=where)


def parse_header(raw: bytes, *, data_bytes: int, where: object) -> Header:
    """Validate a header given as bytes.

    Args:
        raw: the eight bytes of length and the JSON.
        data_bytes: how many bytes follow the header in the file.
        where: what to name in errors.

    Raises:
        HeaderError: see `read_header`.

    >>> text = b'{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    >>> parse_header(len(text).to_bytes(8, "little") + text, data_bytes=8, where="doc").entries["x"].shape
    (2,)
    """
    if len(raw) < 8 or int.from_bytes(raw[:8], "little") != len(raw) - 8 or len(raw) - 8 > MAX_HEADER_BYTES:
        raise HeaderError("header length is wrong", where=where, got=f"{len(raw)} bytes")
    try:
        text = str(raw[8:], "utf-8")
    except UnicodeDecodeError as error:
        raise HeaderError("header is not UTF-8", where=where, got=error.reason) from None
    entries, metadata = _Scanner(text, where).scan()
    order = sorted(entries.items(), key=lambda item: item[1][2:])
    _check_offsets(order, data_bytes, where)
    return Header(dict(order), metadata, bytes(raw))


def check_name(name: str, where: object) -> str:
    """Refuse a tensor name that could be taken for a path out of a folder, or hide something in a terminal."""
    if len(name) > MAX_NAME:
        raise HeaderError("tensor name is too long", where=where, got=f"{len(name)}", expected=f"<= {MAX_NAME}")
    if not NAME.fullmatch(name) or ".." in name or name == "__metadata__":
        raise HeaderError(
            "tensor name is not allowed",
            where=where,
            got=ascii(name[:80]),
            expected="letters, digits and _.-+/:@#$=~()[]<>,| without '..' or a leading slash",
        )
    return name


def nbytes(dtype: str, shape: Iterable[int]) -> int:
    """Bytes of a tensor; a last partial byte (4- and 6-bit dtypes) makes it -1.

    >>> nbytes("BF16", (3, 2))
    12
    """
    total, rest = divmod(math.prod(shape) * DTYPES[dtype][0], 8)
    return total if rest == 0 else -1


class _Scanner:
    """One pass over the JSON text of a header."""

    def __init__(self, text: str, where: object) -> None:
        self.text = text
        self.where = where
        self.at = 0

    def scan(self) -> tuple[dict[str, Entry], dict[str, str]]:
        text, match = self.text, _TENSOR.match
        entries: dict[str, Entry] = {}
        metadata: dict[str, str] | None = None
        if not text.startswith("{"):
            raise self.error("header does not start with '{'", got=ascii(text[:20]))
        self.at = 1
        self.space()
        while True:
            tensor = match(text, self.at)
            if tensor is not None:
                name, dtype, dims, start, end = tensor.groups()
                if name in entries:
                    raise self.error("tensor name twice", got=ascii(name[:80]))
                if len(entries) >= MAX_TENSORS:
                    raise self.error("too many tensors", expected=f"at most {MAX_TENSORS}")
                if ".." in name or name == "__metadata__":
                    check_name(name, self.where)
                if dtype is None or dims is None or start is None:
                    raise self.malformed()
                try:
                    shape = tuple(map(int, dims.split(","))) if dims else ()
                except ValueError:
                    raise self.malformed() from None
                entries[name] = self.checked(name, dtype, shape, int(start), int(end))
                self.at = tensor.end()
            elif text.startswith("}", self.at):
                break
            elif text.startswith('"__metadata__"', self.at):
                if metadata is not None:
                    raise self.error("__metadata__ twice")
                metadata = self.metadata()
            else:
                raise self.malformed()
        if text[self.at + 1 :].strip(" \t\n\r"):
            raise self.error("bytes after the header's end", got=ascii(text[self.at + 1 : self.at + 21]))
        return entries, metadata or {}

    def checked(self, name: str, dtype: str, shape: tuple[int, ...], start: int, end: int) -> Entry:
        if dtype not in DTYPES:
            raise self.error("unknown dtype", tensor=name, got=dtype, expected=", ".join(DTYPES))
        size = nbytes(dtype, shape)
        if end - start != size or size < 0:
            raise self.error(
                "offsets do not match dtype and shape",
                tensor=name,
                got=f"{end - start} bytes",
                expected=f"{size} bytes for {dtype} {list(shape)[:8]}" if size >= 0 else "whole bytes",
            )
        if size == 0 and math.prod(n for n in shape if n) * DTYPES[dtype][0] >= MAX_COUNT:
            raise self.error("shape is too large", tensor=name, got=list(shape)[:8], expected="below 2**63 bits")
        return Entry(dtype, shape, start, end)

    def metadata(self) -> dict[str, str]:
        key = _KEY.match(self.text, self.at)
        if key is None:
            raise self.error("':' was expected after __metadata__")
        self.at = key.end()
        # The expression has seen that it is flat and all strings, so that the JSON decoder cannot be led astray.
        whole = _METADATA.match(self.text, self.at)
        if whole is None:
            raise self.error("__metadata__ is not an object of strings", got=ascii(self.text[self.at : self.at + 40]))
        try:
            pairs: list[tuple[str, str]] = _PAIRS.decode(whole.group())
        except ValueError as error:
            raise self.error("__metadata__ is not JSON", got=error) from None
        if len(pairs) > MAX_METADATA:
            raise self.error("too much metadata", got=len(pairs), expected=f"at most {MAX_METADATA} entries")
        found = dict(pairs)
        if len(found) < len(pairs):
            raise self.error("metadata key twice")
        if "\\" in whole.group():
            # \ud800 without its other half is no character; other readers refuse the file.
            for pair in pairs:
                try:
                    "".join(pair).encode()
                except UnicodeEncodeError:
                    raise self.error("half of a surrogate pair in metadata", got=ascii(pair[0][:80])) from None
        self.at = whole.end()
        self.after()
        return found

    def space(self) -> None:
        match = _SPACES.match(self.text, self.at)
        self.at = match.end() if match else self.at

    def after(self) -> None:
        match = _AFTER.match(self.text, self.at)
        if match is None:
            raise self.error("',' or '}' was expected", got=ascii(self.text[self.at : self.at + 20]))
        self.at = match.end()

    def malformed(self) -> HeaderError:
        """What is wrong with the tensor that starts here; only ever called once for a header."""
        key = _KEY.match(self.text, self.at)
        if key is None:
            return self.error("a name in quotes and ':' were expected", got=ascii(self.text[self.at : self.at + 40]))
        name = key.group(1)
        if "\\" in name:
            return self.error("escape in a tensor name", got=ascii(name[:80]))
        check_name(name, self.where)
        self.at = key.end()
        whole = _OBJECT.match(self.text, self.at)
        if whole is None:
            return self.error("tensor entry is not a small flat object", tensor=name)
        fields = re.findall(r'"([^"]{0,20})[^"]*+"[ \t\n\r]*+:', whole.group())
        if sorted(fields) != ["data_offsets", "dtype", "shape"]:
            return self.error(
                "tensor entry has the wrong keys",
                tensor=name,
                got=ascii(fields[:5]),
                expected="dtype, shape, data_offsets",
            )
        self.at = whole.end()
        if _AFTER.match(self.text, self.at) is None:
            return self.error("',' or '}' was expected", got=ascii(self.text[self.at : self.at + 20]))
        return self.error(
            "tensor entry is malformed",
            tensor=name,
            got=ascii(whole.group()[:160]),
            expected=f'{{"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, at most {MAX_RANK} dimensions',
        )

    def error(
        self, what: str, *, tensor: str | None = None, got: object = None, expected: object = None
    ) -> HeaderError:
        place = f"{self.where}: {tensor}" if tensor else f"{self.where}, character {self.at} of the header"
        return HeaderError(what, where=place, got=got, expected=expected)


def _check_offsets(order: Iterable[tuple[str, Entry]], data_bytes: int, where: object) -> None:
    at = 0
    for name, (_, _, start, end) in order:
        if end > data_bytes:
            raise HeaderError(
                "tensor lies outside the file (truncated?)",
                where=f"{where}: {name}",
                got=f"bytes {start} to {end}",
                expected=f"at most {data_bytes}",
            )
        if start != at:
            raise HeaderError(
                "tensors overlap" if start < at else "a gap between tensors",
                where=f"{where}: {name}",
                got=f"starts at byte {start}",
                expected=f"{at}",
            )
        at = end
    if at != data_bytes:
        raise HeaderError(
            "bytes that belong to no tensor", where=where, got=f"{data_bytes} bytes of data", expected=f"{at}"
        )


def build_header(specs: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str]) -> Header:
    """The header that our writer gives these tensors; a function of its arguments alone.

    Tensors are laid out by falling element size, then by name, so that each starts at a multiple of its element's
    size; the JSON is padded with spaces to a multiple of eight bytes.
    """
    order = sorted(specs, key=lambda name: (-DTYPES[specs[name][0]][0], name))
    at = 0
    entries: dict[str, Entry] = {}
    for name in order:
        dtype, shape = specs[name]
        size = nbytes(dtype, shape)
        if size < 0:
            raise HeaderError("tensor does not fill whole bytes", where=name, got=f"{dtype} {list(shape)}")
        check_name(name, "header to write")
        entries[name] = Entry(dtype, shape, at, at + size)
        at += size
    document: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    for name, entry in entries.items():
        document[name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [entry.start, entry.end],
        }
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=True).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER_BYTES or len(entries) > MAX_TENSORS:
        raise HeaderError(
            "too much for one header",
            got=f"{len(entries)} tensors, {len(text)} bytes",
            expected=f"at most {MAX_TENSORS} tensors and {MAX_HEADER_BYTES} bytes",
            hint="write shards",
        )
    # Read back, so that nothing is written which every reader would refuse.
    return parse_header(len(text).to_bytes(8, "little") + text, data_bytes=at, where="header to write")
