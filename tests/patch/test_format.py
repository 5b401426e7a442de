"""The golden file of docs/formats/patch.md is read, and what is written has its parts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from checkpoint.models import assert_same

from cofuse.checkpoint import Memory, SafetensorsFile, content_id
from cofuse.checkpoint.frames import stated, unframe
from cofuse.patch import Patch, apply, make
from cofuse.patch.edits import ADD, ALL, BITMAP, GAPS, PUT, XOR

DOCUMENT = (Path(__file__).parents[2] / "docs" / "formats" / "patch.md").read_text(encoding="utf-8")


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    block = re.search(r"```hex\n(.*?)```", DOCUMENT, re.DOTALL)
    assert block is not None
    lines = [line for line in block.group(1).splitlines() if not line.startswith("#")]
    (tmp_path / "golden.patch").write_bytes(bytes.fromhex("".join(lines)))
    return tmp_path / "golden.patch"


BASE = Memory({"w": torch.arange(1.0, 9.0)})
TUNED = {
    "w": torch.tensor([1, 2, 3 + 2**-22, 4, 5, 6, 7, 9], dtype=torch.float32),
    "n": torch.tensor([7, 8], dtype=torch.int16),
}
FILES = {"config.json": b'{"a":1}\n'}


def test_the_golden_file_is_read(golden: Path) -> None:
    patch = Patch.load(golden)
    assert f"| base | `{content_id(BASE)}` |" in DOCUMENT
    assert f"| tuned, result | `{patch.result}` |" in DOCUMENT
    applied = apply(BASE, patch)
    assert_same(applied, TUNED)
    assert dict(applied.files) == FILES
    assert content_id(applied) == patch.result


def test_what_is_written_has_the_golden_parts(golden: Path, tmp_path: Path) -> None:
    make(BASE, Memory(TUNED, files=FILES), tmp_path / "x.patch")
    old, new = SafetensorsFile(golden), SafetensorsFile(tmp_path / "x.patch")
    for part in ("chunks", "rows"):
        assert new.read_bytes(part) == old.read_bytes(part)
    said = [bytes(file.read_bytes("manifest")) for file in (old, new)]
    assert len({unframe(frame, stated(frame)) for frame in said}) == 1


def test_numbers_in_files_stay_what_they_are() -> None:
    assert (ALL, GAPS, BITMAP, PUT, ADD, XOR) == (0, 1, 2, 0, 1, 2)
