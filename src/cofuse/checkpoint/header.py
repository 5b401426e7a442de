"""The safetensors header: hostile input until it has passed here.

One validator for every reader, for the store and for the hub. It goes through the header once, entry by entry, and
stops at the first thing that is wrong, so neither time nor memory depends on what a hostile file would like.
`json.loads` on the whole header would build whatever nesting the file asks for first.
"""

from __future__ import annotations

import json
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
MAX_ENTRY = 4096  # characters of one tensor's entry, which holds a dtype, a shape and two offsets

# Letters, digits and the punctuation that frameworks use in parameter names.
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-+/:@#$=~()\[\]<>, |]*+")

_SPACE = re.compile(r"[ \t\n\r]*+")
_STRING = re.compile(r'"((?:[^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*+)"')
_COLON = re.compile(r"[ \t\n\r]*+:[ \t\n\r]*+")
_OBJECT = re.compile(r"\{[^{}]{0,4096}+\}")
_NUMBER = r"(?:0|[1-9]\d{0,18})"
# How every known writer spells an entry; others take the slower road through json.
_PLAIN = re.compile(
    rf'\{{"dtype":"(\w{{1,16}})","shape":\[((?:{_NUMBER}(?:,{_NUMBER})*+)?)\],'
    rf'"data_offsets":\[({_NUMBER}),({_NUMBER})\]\}}'
)


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
    size = os.fstat(fd).st_size
    prefix = os.pread(fd, 8, 0)
    if len(prefix) < 8:
        raise HeaderError("truncated: no header length", where=where, got=f"{size} bytes", expected="at least 8")
    length = int.from_bytes(prefix, "little")
    if length > MAX_HEADER_BYTES:
        raise HeaderError(
            "header is too long", where=where, got=f"{length} bytes", expected=f"at most {MAX_HEADER_BYTES}"
        )
    if length > size - 8:
        raise HeaderError("truncated header", where=where, got=f"{size - 8} bytes", expected=f"{length} bytes")
    text = os.pread(fd, length, 8)
    if len(text) < length:
        raise HeaderError("truncated header", where=where, got=f"{len(text)} bytes", expected=f"{length} bytes")
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
    ordered = dict(sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)))
    _check_offsets(ordered, data_bytes, where)
    return Header(ordered, metadata, bytes(raw))


def check_name(name: str, where: object) -> str:
    """Refuse a tensor name that could be taken for a path out of a folder, or hide something in a terminal."""
    if len(name) > MAX_NAME:
        raise HeaderError("tensor name is too long", where=where, got=f"{len(name)}", expected=f"<= {MAX_NAME}")
    if not NAME.fullmatch(name) or ".." in name:
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
    count = 1
    for n in shape:
        count *= n
    total, rest = divmod(count * DTYPES[dtype][0], 8)
    return total if rest == 0 else -1


class _Scanner:
    """One pass over the JSON text of a header."""

    def __init__(self, text: str, where: object) -> None:
        self.text = text
        self.where = where
        self.at = 0

    def scan(self) -> tuple[dict[str, Entry], dict[str, str]]:
        entries: dict[str, Entry] = {}
        metadata: dict[str, str] | None = None
        if not self.text.startswith("{"):
            raise self.error("header does not start with '{'", got=ascii(self.text[:20]))
        self.at = 1
        self.space()
        first = True
        while not self.take("}"):
            if not first:
                self.need(",")
                self.space()
            first = False
            key = self.string()
            self.colon()
            if key == "__metadata__":
                if metadata is not None:
                    raise self.error("__metadata__ twice")
                metadata = self.metadata()
            elif key in entries:
                raise self.error("tensor name twice", got=ascii(key[:80]))
            else:
                if len(entries) >= MAX_TENSORS:
                    raise self.error("too many tensors", expected=f"at most {MAX_TENSORS}")
                check_name(key, self.where)
                entries[key] = self.entry(key)
            self.space()
        if self.text[self.at :].strip(" \t\n\r"):
            raise self.error("bytes after the header's end", got=ascii(self.text[self.at : self.at + 20]))
        return entries, metadata or {}

    def entry(self, name: str) -> Entry:
        plain = _PLAIN.match(self.text, self.at)
        if plain:
            self.at = plain.end()
            dtype, dims, start, end = plain.groups()
            shape = tuple(map(int, dims.split(","))) if dims else ()
            return self.checked(name, dtype, shape, int(start), int(end))
        whole = _OBJECT.match(self.text, self.at)
        if not whole:
            raise self.error("tensor entry is not a small object", tensor=name)
        self.at = whole.end()
        try:
            pairs = json.loads(whole.group(), object_pairs_hook=lambda pairs: pairs, parse_int=_short_int)
        except (ValueError, RecursionError) as error:
            raise self.error("tensor entry is not JSON", tensor=name, got=str(error)[:80]) from None
        if sorted(key for key, _ in pairs) != ["data_offsets", "dtype", "shape"]:
            raise self.error(
                "tensor entry has the wrong keys",
                tensor=name,
                got=ascii([k[:20] for k, _ in pairs][:5]),
                expected="dtype, shape, data_offsets",
            )
        fields = dict(pairs)
        dtype, listed, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
        if not isinstance(dtype, str):
            raise self.error("dtype is not a string", tensor=name, got=ascii(dtype)[:40])
        if not isinstance(listed, list) or not all(type(n) is int and n >= 0 for n in listed):
            raise self.error("shape is not a list of whole numbers", tensor=name, got=ascii(listed)[:80])
        if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(n) is int and n >= 0 for n in offsets):
            raise self.error("data_offsets is not a pair of whole numbers", tensor=name, got=ascii(offsets)[:80])
        return self.checked(name, dtype, tuple(listed), *offsets)

    def checked(self, name: str, dtype: str, shape: tuple[int, ...], start: int, end: int) -> Entry:
        if dtype not in DTYPES:
            raise self.error("unknown dtype", tensor=name, got=ascii(dtype[:20]), expected=", ".join(DTYPES))
        if len(shape) > MAX_RANK:
            raise self.error("too many dimensions", tensor=name, got=len(shape), expected=f"at most {MAX_RANK}")
        size = nbytes(dtype, shape)
        if end - start != size or size < 0:
            raise self.error(
                "offsets do not match dtype and shape",
                tensor=name,
                got=f"{end - start} bytes",
                expected=f"{size} bytes for {dtype} {list(shape)[:8]}" if size >= 0 else "whole bytes",
            )
        return Entry(dtype, shape, start, end)

    def metadata(self) -> dict[str, str]:
        found: dict[str, str] = {}
        if self.text[self.at : self.at + 4] == "null":
            self.at += 4
            return found
        self.need("{")
        self.space()
        while not self.take("}"):
            if found:
                self.need(",")
                self.space()
            if len(found) >= MAX_METADATA:
                raise self.error("too much metadata", expected=f"at most {MAX_METADATA} entries")
            key = self.string()
            self.colon()
            if key in found:
                raise self.error("metadata key twice", got=ascii(key[:80]))
            found[key] = self.string()
            self.space()
        return found

    def string(self) -> str:
        match = _STRING.match(self.text, self.at)
        if not match:
            raise self.error("a string was expected", got=ascii(self.text[self.at : self.at + 20]))
        self.at = match.end()
        body = match.group(1)
        if "\\" not in body:
            return body
        value: str = json.loads(match.group())
        return value

    def colon(self) -> None:
        match = _COLON.match(self.text, self.at)
        if not match:
            raise self.error("':' was expected", got=ascii(self.text[self.at : self.at + 20]))
        self.at = match.end()

    def space(self) -> None:
        match = _SPACE.match(self.text, self.at)
        if match:
            self.at = match.end()

    def take(self, char: str) -> bool:
        if self.text[self.at : self.at + 1] != char:
            return False
        self.at += 1
        return True

    def need(self, char: str) -> None:
        if not self.take(char):
            raise self.error(f"'{char}' was expected", got=ascii(self.text[self.at : self.at + 20]))

    def error(
        self, what: str, *, tensor: str | None = None, got: object = None, expected: object = None
    ) -> HeaderError:
        place = f"{self.where}: {tensor}" if tensor else f"{self.where}, character {self.at} of the header"
        return HeaderError(what, where=place, got=got, expected=expected)


def _short_int(digits: str) -> int:
    if len(digits) > 19:
        raise ValueError("a number of more than 19 digits")
    return int(digits)


def _check_offsets(ordered: Mapping[str, Entry], data_bytes: int, where: object) -> None:
    at = 0
    for name, entry in ordered.items():
        if entry.end > data_bytes:
            raise HeaderError(
                "tensor lies outside the file (truncated?)",
                where=f"{where}: {name}",
                got=f"bytes {entry.start} to {entry.end}",
                expected=f"at most {data_bytes}",
            )
        if entry.start != at:
            raise HeaderError(
                "tensors overlap" if entry.start < at else "a gap between tensors",
                where=f"{where}: {name}",
                got=f"starts at byte {entry.start}",
                expected=f"{at}",
            )
        at = entry.end
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
        raise HeaderError("too many tensors for one file", got=len(entries), expected=f"at most {MAX_TENSORS}")
    return Header(entries, dict(metadata), len(text).to_bytes(8, "little") + text)
