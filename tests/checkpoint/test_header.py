"""The rules of the header: one test a rule, and what stands just inside it is accepted."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError, safe_open

from cofuse.checkpoint import Memory, SafetensorsFile, build_header, open_local, parse_header
from cofuse.checkpoint.dtypes import DTYPES
from cofuse.checkpoint.header import MAX_HEADER_BYTES, MAX_NAME, MAX_RANK, MAX_TENSORS, check_name, nbytes
from cofuse.errors import CheckpointError, HeaderError

from .hostile import entry, many, parse, prefixed, write

GOOD = entry()
SPELLED = json.dumps(GOOD)
EMPTY = json.dumps(entry(end=0, shape=[0]))


def one(text: str) -> str:
    """A header of one tensor whose entry is spelled like `text`."""
    return f'{{"x":{text}}}'


REFUSED: dict[str, tuple[Any, str]] = {
    # text, what the error says
    "empty": ("", "does not start"),
    "list": ("[]", "does not start"),
    "space first": (" {}", "does not start"),
    "byte order mark": ("\ufeff{}", "does not start"),
    "not closed": ('{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}', "expected"),
    "comma at the end": ('{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},}', "expected"),
    "no comma": ('{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"y":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', "expected"),
    "something after": (one(SPELLED) + "x", "after the header's end"),
    "a second object": (one(SPELLED) + "{}", "after the header's end"),
    "NUL padding": (one(SPELLED) + "\0", "after the header's end"),
    "not UTF-8": (b'{"\xff":{}}', "UTF-8"),
    "overlong UTF-8": (b'{"\xc0\xae":{}}', "UTF-8"),
    "name twice": ('{"x":%s,"x":%s}'.replace("%s", EMPTY, 1).replace("%s", SPELLED), "twice"),
    "name twice, once escaped": ('{"x":%s,"\\u0078":%s}'.replace("%s", EMPTY, 1).replace("%s", SPELLED), "escape"),
    "metadata twice": ('{"__metadata__":{},"__metadata__":{},"x":%s}'.replace("%s", SPELLED), "twice"),
    "metadata key twice": ('{"__metadata__":{"a":"1","a":"2"},"x":%s}'.replace("%s", SPELLED), "twice"),
    "metadata key twice, once escaped": ('{"__metadata__":{"a":"1","\\u0061":"2"},"x":%s}'.replace("%s", SPELLED), "twice"),
    "metadata number": ({"__metadata__": {"a": 1}, "x": GOOD}, "strings"),
    "metadata nested": ({"__metadata__": {"a": {"b": "c"}}, "x": GOOD}, "strings"),
    "metadata list": ({"__metadata__": ["a"], "x": GOOD}, "strings"),
    "metadata null": ({"__metadata__": None, "x": GOOD}, "strings"),
    "metadata half surrogate": ({"__metadata__": {"a": "\ud800"}, "x": GOOD}, "surrogate"),
    "metadata raw newline": ('{"__metadata__":{"a":"\n"},"x":%s}'.replace("%s", SPELLED), "strings"),
    "metadata bad escape": ('{"__metadata__":{"a":"\\x41"},"x":%s}'.replace("%s", SPELLED), "strings"),
    "metadata as a tensor": ({"__metadata__": GOOD}, "not allowed"),
    "escaped name": ('{"\\u0078":%s}'.replace("%s", SPELLED), "escape"),
    "escaped metadata key": ('{"\\u005f_metadata__":{},"x":%s}'.replace("%s", SPELLED), "escape"),
    "unknown dtype": ({"x": entry("F7")}, "unknown dtype"),
    "lower-case dtype": ({"x": entry("f32")}, "unknown dtype"),
    "dtype number": (one('{"dtype":5,"shape":[2],"data_offsets":[0,8]}'), "malformed"),
    "dtype null": (one('{"dtype":null,"shape":[2],"data_offsets":[0,8]}'), "malformed"),
    "shape number": (one('{"dtype":"F32","shape":2,"data_offsets":[0,8]}'), "malformed"),
    "shape string": (one('{"dtype":"F32","shape":"2","data_offsets":[0,8]}'), "malformed"),
    "shape float": (one('{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}'), "malformed"),
    "shape exponent": (one('{"dtype":"F32","shape":[2e0],"data_offsets":[0,8]}'), "malformed"),
    "shape negative": (one('{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}'), "malformed"),
    "shape minus nought": (one('{"dtype":"F32","shape":[-0],"data_offsets":[0,0]}'), "malformed"),
    "shape leading nought": (one('{"dtype":"F32","shape":[02],"data_offsets":[0,8]}'), "malformed"),
    "shape true": (one('{"dtype":"F32","shape":[true,2],"data_offsets":[0,8]}'), "malformed"),
    "shape NaN": (one('{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}'), "malformed"),
    "shape comma at the end": (one('{"dtype":"F32","shape":[2,],"data_offsets":[0,8]}'), "malformed"),
    "shape in other digits": (one('{"dtype":"F32","shape":[\u0662],"data_offsets":[0,8]}'), "malformed"),
    "shape nested": (one('{"dtype":"F32","shape":[[2]],"data_offsets":[0,8]}'), "malformed"),
    "shape too long": ({"x": entry(shape=[2] + [1] * MAX_RANK)}, "malformed"),
    "offsets three": (one('{"dtype":"F32","shape":[2],"data_offsets":[0,8,8]}'), "malformed"),
    "offsets one": (one('{"dtype":"F32","shape":[2],"data_offsets":[8]}'), "malformed"),
    "offsets negative": (one('{"dtype":"F32","shape":[2],"data_offsets":[-8,0]}'), "malformed"),
    "offset of twenty digits": ({"x": entry(start=10**19, end=10**19 + 8)}, "malformed"),
    "offset of a thousand digits": (one('{"dtype":"F32","shape":[2],"data_offsets":[0,%s]}' % ("9" * 1000)), "malformed"),
    "offsets the wrong way round": ({"x": entry(start=8, end=0)}, "do not match"),
    "offsets too small": ({"x": entry(end=4)}, "do not match"),
    "offsets too large": ({"x": entry(shape=[1])}, "do not match"),
    "half a byte": ({"x": entry("F4", [1], 0, 0)}, "do not match"),
    "too large for other readers": ({"x": entry(shape=[2**62, 4, 0], end=0), "y": GOOD}, "too large"),
    "key missing": (one('{"dtype":"F32","shape":[2]}'), "wrong keys"),
    "key twice": (one('{"dtype":"F32","dtype":"F32","shape":[2]}'), "wrong keys"),
    "key too many": ({"x": {**GOOD, "more": 1}}, "wrong keys"),
    "key given twice beside the others": (one('{"dtype":"F32","shape":[2],"data_offsets":[0,8],"dtype":"F32"}'), "wrong keys"),
    "entry a list": (one("[1]"), "small flat object"),
    "entry nested": (one('{"dtype":{"a":{}},"shape":[2],"data_offsets":[0,8]}'), "small flat object"),
    "entry long": (one('{"dtype":"F32",' + " " * 5000), "small flat object"),
    "outside the file": ({"x": entry(shape=[4], end=16)}, "outside the file"),
    "gap at the start": ({"x": entry(shape=[1], start=4)}, "gap"),
    "gap between": ({"x": entry(shape=[1], end=4), "y": entry("U8", [1], 7, 8)}, "gap"),
    "overlap": ({"x": entry(), "y": entry("U8", [4], 4, 8)}, "overlap"),
    "the same bytes twice": ({"x": entry(), "y": entry()}, "overlap"),
    "bytes at the end": ({"x": entry(shape=[1], end=4)}, "no tensor"),
    "no tensors but bytes": ({}, "no tensor"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_header_against_a_rule_is_refused(case: str) -> None:
    text, says = REFUSED[case]
    with pytest.raises(HeaderError, match=says) as caught:
        parse(text)
    assert caught.value.where is not None
    assert caught.value.where.startswith("here")


BAD_NAMES = ["", "../x", "a/../../b", "a..b", "/etc/passwd", "a\0b", "a\nb", "a\x1b[31mb", ".hidden", "-rf", " x",
             "é", "a\u202eb", "a\\b", 'a"b', "a%b", "a;b", "a'b", "a*b", "a?b", "a{b}", "__metadata__", "n" * (MAX_NAME + 1)]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_outside_the_alphabet_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(HeaderError, match=r"tensor name|name in quotes"):
        parse({name: GOOD})
    with pytest.raises(HeaderError, match="tensor name"):
        check_name(name, "here")
    with pytest.raises(HeaderError):
        build_header({name: ("F32", (2,))}, {})


@pytest.mark.parametrize(
    "name",
    ["x", "0", "_", "model.layers.0.self_attn.q_proj.weight", "a/b:c@d#e$f=g~h(i)[j]<k>,l m|n-o+p", "n" * MAX_NAME],
)
def test_names_that_frameworks_use_are_accepted(name: str) -> None:
    assert list(parse({name: GOOD}).entries) == [name]


def test_errors_name_file_tensor_got_and_expected(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", {"w.x": entry(end=4)})
    with pytest.raises(HeaderError) as caught:
        open_local(path)
    assert caught.value.where == f"{path}: w.x"
    assert caught.value.got == "4 bytes"
    assert caught.value.expected == "8 bytes for F32 [2]"


def test_errors_show_nothing_raw_from_the_file() -> None:
    with pytest.raises(HeaderError) as caught:
        parse('{"\x1b]0;owned\x07":1}'.replace("\x1b", "\u009b").replace("\x07", "\u202e"))
    assert str(caught.value).isascii()


def test_the_length_is_believed_only_within_limits(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    for length in (MAX_HEADER_BYTES + 1, 2**63, 2**64 - 1):
        path.write_bytes(length.to_bytes(8, "little") + b"{}")
        with pytest.raises(HeaderError, match="too long"):
            open_local(path)
    path.write_bytes((3).to_bytes(8, "little") + b"{}")
    with pytest.raises(HeaderError, match="truncated header"):
        open_local(path)
    with pytest.raises(HeaderError, match="length is wrong"):
        parse_header(b"\0" * 4, data_bytes=0, where="here")
    with pytest.raises(HeaderError, match="length is wrong"):
        parse_header(prefixed("{}") + b" ", data_bytes=0, where="here")


def test_a_header_of_exactly_the_limit_is_read() -> None:
    text = b"{}" + b" " * (MAX_HEADER_BYTES - 2)
    assert parse_header(prefixed(text), data_bytes=0, where="here").entries == {}
    with pytest.raises(HeaderError):
        parse_header(prefixed(text + b" "), data_bytes=0, where="here")


def test_a_hundred_thousand_tensors_and_no_more() -> None:
    assert len(parse_header(many(MAX_TENSORS), data_bytes=0, where="here").entries) == MAX_TENSORS
    with pytest.raises(HeaderError, match="too many tensors"):
        parse_header(many(MAX_TENSORS + 1), data_bytes=0, where="here")


def test_too_much_metadata_is_refused() -> None:
    pairs = ",".join(f'"{i}":""' for i in range(100_001))
    with pytest.raises(HeaderError, match="too much metadata"):
        parse('{"__metadata__":{' + pairs + "}}", 0)


def test_a_file_cut_at_any_byte_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write(path, {"__metadata__": {"a": "b"}, "x": entry(), "y": entry("U8", [], 8, 9)}, bytes(range(9)))
    whole = path.read_bytes()
    assert open_local(path).read("y").item() == 8
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        with pytest.raises(HeaderError):
            open_local(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(HeaderError, match="no tensor"):
        open_local(path)


@pytest.mark.parametrize(
    "text",
    [
        '{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}   ',
        '{ "x" : { "data_offsets" : [ 0 , 8 ] ,\n\t"shape":[\r2 , 1] , "dtype":"F32" } }\n',
        '{"x":{"shape":[],"dtype":"F64","data_offsets":[0,8]},"__metadata__":{}}',
        '{"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        '{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"e":{"dtype":"I8","shape":[3,0],"data_offsets":[8,8]}}',
        '{"__metadata__":{"k\\u00e9\\n":"\\ud83d\\ude00 \\"v\\" é"},"x":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}}',
    ],
)
def test_other_spellings_are_read_as_safetensors_reads_them(text: str, tmp_path: Path) -> None:
    header = parse(text)
    path = write(tmp_path / "a.safetensors", text, bytes(range(8)))
    with safe_open(path, "pt") as theirs:
        assert set(theirs.keys()) == set(header.entries)
        assert (theirs.metadata() or {}) == header.metadata
        for name, spec in header.entries.items():
            assert tuple(theirs.get_slice(name).get_shape()) == spec.shape
            assert theirs.get_slice(name).get_dtype() == spec.dtype
    starts = [e.start for e in header.entries.values()]
    assert starts == sorted(starts)
    assert header.raw == path.read_bytes()[: header.data_start]
    assert header.data_bytes == 8


# What safetensors itself lets through, and why we do not.
@pytest.mark.parametrize("case", ["name twice", "metadata key twice", "key too many"])
def test_we_refuse_what_safetensors_accepts(case: str, tmp_path: Path) -> None:
    text, _ = REFUSED[case]
    path = write(tmp_path / "a.safetensors", text)
    with safe_open(path, "pt") as theirs:
        assert "x" in theirs.keys()  # noqa: SIM118 - not a mapping
    with pytest.raises(HeaderError):
        open_local(path)


def test_a_folder_or_a_pipe_with_the_name_of_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "a.safetensors").mkdir()
    with pytest.raises(CheckpointError, match="not a file"):
        open_local(tmp_path / "m")
    os.mkfifo(tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match="not a file"):
        open_local(tmp_path / "b.safetensors")


def test_the_layout_is_golden() -> None:
    """Written down in docs/formats/checkpoint.md: it must never change."""
    specs = {"b": ("F32", (2,)), "a": ("F32", ()), "h": ("BF16", (1, 2)), "i": ("I64", (1,)), "e": ("U8", (0, 4))}
    header = build_header(specs, {"z": "1", "format": "pt"})
    assert header.raw[8:] == (
        b'{"__metadata__":{"format":"pt","z":"1"},'
        b'"i":{"dtype":"I64","shape":[1],"data_offsets":[0,8]},'
        b'"a":{"dtype":"F32","shape":[],"data_offsets":[8,12]},'
        b'"b":{"dtype":"F32","shape":[2],"data_offsets":[12,20]},'
        b'"h":{"dtype":"BF16","shape":[1,2],"data_offsets":[20,24]},'
        b'"e":{"dtype":"U8","shape":[0,4],"data_offsets":[24,24]}}'
    ).ljust(320)
    assert header.raw[:8] == (320).to_bytes(8, "little")
    assert header.raw == build_header(dict(reversed(specs.items())), {"format": "pt", "z": "1"}).raw


def test_every_tensor_is_aligned_to_its_element() -> None:
    specs = {f"t{i}": (code, (8, i % 3)) for i, code in enumerate(DTYPES)}
    header = build_header(specs, {})
    assert header.data_start % 8 == 0
    for name, e in header.entries.items():
        assert e.start % max(1, DTYPES[specs[name][0]][0] // 8) == 0


@pytest.mark.parametrize(
    ("specs", "metadata"),
    [
        ({"x": ("F4", (1,))}, {}),
        ({"x": ("F32", (2**62, 4, 0))}, {}),
        ({"x": ("F32", (1,) * 65)}, {}),
        ({"x": ("F32", (1,))}, {"a": "\ud800"}),
        ({"x": ("F32", (1,))}, {"a": "m" * MAX_HEADER_BYTES}),
    ],
)
def test_nothing_is_written_that_would_not_be_read(specs: Any, metadata: Any) -> None:
    with pytest.raises(HeaderError):
        build_header(specs, metadata)


def test_sizes_of_every_dtype() -> None:
    for code, (width, _) in DTYPES.items():
        assert nbytes(code, (8, 3)) == 3 * width
        assert nbytes(code, (5, 0)) == 0
    assert nbytes("F4", (3,)) == -1
    assert nbytes("F6_E2M3", (4,)) == 3


def test_safetensors_knows_every_dtype_of_ours(tmp_path: Path) -> None:
    for code in DTYPES:
        size = nbytes(code, (8,))
        path = write(tmp_path / "a.safetensors", {"x": entry(code, [8], 0, size)}, bytes(size))
        with safe_open(path, "np") as theirs:
            assert theirs.get_slice("x").get_dtype() == code
        assert SafetensorsFile(path).spec("x") == (code, (8,))


def test_a_dtype_that_torch_lacks_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", {"x": entry("F4", [2, 8], 0, 8)})
    checkpoint = SafetensorsFile(path)
    assert checkpoint.read_bytes("x") == bytes(8)
    assert list(checkpoint.blocks("x", 8)) == [(0, 8)]
    for read in (
        lambda: checkpoint.read("x"),
        lambda: checkpoint.read("x", slice(0, 1)),
        lambda: checkpoint.read_flat("x", 0, 2),
    ):
        with pytest.raises(CheckpointError, match="torch has no such dtype"):
            read()  # fmt: skip


def test_blocks_hold_whole_elements_of_six_bits_too(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", {"x": entry("F6_E2M3", [64], 0, 48)}, bytes(48))
    blocks = list(SafetensorsFile(path).blocks("x", 30))
    assert blocks == [(0, 24), (24, 48)]


def test_a_tensor_cannot_be_called_metadata() -> None:
    import torch

    with pytest.raises(HeaderError, match="not allowed"):
        Memory({"__metadata__": torch.ones(1)})


def test_safetensors_refuses_a_half_surrogate_too(tmp_path: Path) -> None:
    """The reason of a rule: what we accept, the other reader must accept."""
    path = write(tmp_path / "a.safetensors", REFUSED["metadata half surrogate"][0])
    with pytest.raises(SafetensorError):
        safe_open(path, "pt")
