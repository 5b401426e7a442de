"""`cofuse extract-lora` writes an adapter and says what error it leaves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cofuse import address
from cofuse.checkpoint import Memory, content_id, open_local

from .test_newcomer import done, refused


@pytest.fixture
def here(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    base = {f"{n}.weight": torch.randn((8, 6), generator=generator) for n in ("q_proj", "up_proj")}
    files = {"config.json": b'{"model_type": "none"}'}
    Memory(base, files=files).save(tmp_path / "base")
    tuned = {name: tensor + 0.1 * torch.randn((8, 6), generator=generator) for name, tensor in base.items()}
    Memory(tuned, files=files).save(tmp_path / "tuned")
    return tmp_path


def test_it_says_the_errors_the_largest_first(here: Path) -> None:
    said = done("extract-lora", "base", "tuned", "out", "--rank", "2", cwd=here)
    record = json.loads((here / "out" / "cofuse.json").read_bytes())
    rows = [line.split() for line in said.splitlines() if "  rank " in line]
    errors = {row[3]: float(row[0]) for row in rows}
    assert {m: pytest.approx(p["error"], abs=1e-4) for m, p in record["products"].items()} == errors
    assert [float(row[0]) for row in rows] == sorted(errors.values(), reverse=True)
    assert f"error {record['error']:.4f} of the whole change" in said
    assert record["base"] == {"address": "base", "content": content_id(open_local(here / "base"))}


def test_it_opens_on_its_base_as_the_tuned_model(here: Path) -> None:
    done("extract-lora", "base", "tuned", "out", "--rank", "6", cwd=here)
    merged = address.open("out", cwd=here)
    for name, tensor in ((n, open_local(here / "tuned").read(n)) for n in merged.names()):
        torch.testing.assert_close(merged.read(name), tensor, rtol=0, atol=1e-5)
    done("show", "out", cwd=here)


def test_options(here: Path) -> None:
    said = done(
        *("extract-lora", "base", "tuned", "out", "--max-error", "0.5", "--modules", "q_proj", "--json"),
        *("--no-distribute-scale", "--dtype", "bfloat16"),
        cwd=here,
    )
    record = json.loads(said)
    assert list(record["products"]) == ["q_proj"]
    assert record["products"]["q_proj"]["error"] <= 0.5
    assert list(record["left"]) == ["up_proj.weight"]
    assert (
        open_local(here / "out" / "adapter_model.safetensors").spec("base_model.model.q_proj.lora_A.weight")[0]
        == "BF16"
    )


def test_mistakes(here: Path) -> None:
    assert "no weight changed" in refused("extract-lora", "base", "base", "out", cwd=here)
    assert 'did you mean "float32"' in refused("extract-lora", "base", "tuned", "out", "--dtype", "float23", cwd=here)
    assert not (here / "out").exists()
