"""`cofuse fuse` as people use it: a plan first, changes on the command line, and mistakes told with the recipe's line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fuse.llama import LAYERS, family

from cofuse.checkpoint import Memory, open_local

from .test_newcomer import cofuse, done, refused

STACK = """\
merge_method: passthrough
slices:
  - sources:
      - {model: ./math, layer_range: [0, 4]}
  - sources:
      - model: ./code
        layer_range: [2, 6]
"""
MIX = """\
merge_method: ties
base_model: ./base
models:
  - model: ./math
    parameters:
      density: [1, 0.2]
  - model: ./code
parameters:
  weight: 0.5
  density:
    - filter: mlp
      value: 0.3
    - value: 0.6
"""


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return family(tmp_path_factory.mktemp("here"))


def test_a_dry_run_shows_plan_and_compatibility(here: Path) -> None:
    (here / "r.yaml").write_text(MIX)
    said = done("fuse", "r.yaml", "out", "--dry-run", "--threads", "2", cwd=here)
    rows = {line.split()[0]: line.split() for line in said.splitlines() if " ties " in line}
    assert rows["model.layers.{5}.mlp.*"][1:] == ["ties", "F32", "weight", "0.5;", "density", "0.2", "0.3"]
    assert rows["model.norm.weight"][1:] == ["ties", "F32", "weight", "0.5;", "density", "1", "0.6"]
    assert "57 tensors; 678,528 bytes to read, 2 times or more, 226,176 to write;" in said
    assert "on 2 threads" in said
    assert "compatibility of 2 models on ./base" in said
    assert not (here / "out").exists()
    data = json.loads(done("fuse", "r.yaml", "out", "--dry-run", "--json", cwd=here))
    assert data["plan"]["tensors"] == 57
    assert data["compatibility"]["base"] == "./base"
    (here / "s.yaml").write_text(STACK)
    said = done("fuse", "s.yaml", "out", "--dry-run", cwd=here)
    assert ["model.layers.{4-7}.*", "passthrough", "F32", "./code", "-2"] in [
        line.split() for line in said.splitlines()
    ]


def test_the_report_is_shown_where_there_can_be_no_plan(here: Path) -> None:
    (here / "r.yaml").write_text(MIX.replace("./code", "./german"))
    ended = cofuse("fuse", "r.yaml", "out", "--dry-run", cwd=here)
    assert ended.returncode == 1
    assert "stop vocabulary size" in ended.stdout
    assert "tokenizer_source" in ended.stderr


def test_the_command_line_changes_the_recipe(here: Path, tmp_path: Path) -> None:
    (here / "r.yaml").write_text(MIX.replace("ties", "dare_ties"))

    def made(*options: str) -> bytes:
        done("fuse", "r.yaml", tmp_path / "out", *options, cwd=here)
        return (tmp_path / "out/model.safetensors").read_bytes()

    first = made()
    assert made("--threads", "1") == first
    assert made("--seed", "0") == first
    assert made("--seed", "5") == made("--set", "seed=5") != first
    plan = done("fuse", "r.yaml", "out", "--dry-run", "--set", "parameters.density=0.3", cwd=here)
    assert "density 1 0.3" in plan
    plan = done("fuse", "r.yaml", "out", "--dry-run", "--set", "models.0.parameters.weight=2", cwd=here)
    assert "weight 2 0.5" in plan
    plan = done("fuse", "r.yaml", "out", "--dry-run", "--set", "parameters.weight=[0, 1e0]", cwd=here)
    assert "weight 0.2;" in plan
    data = json.loads(done("fuse", "r.yaml", tmp_path / "out", "--shard", "0.001", "--json", cwd=here))
    assert data == {"out": str(tmp_path / "out"), "tensors": 57, "bytes": data["bytes"], "files": 1}


def test_parameters_of_other_methods_are_told_and_change_nothing(here: Path, tmp_path: Path) -> None:
    (here / "r.yaml").write_text(MIX.replace("merge_method: ties", "merge_method: task_arithmetic"))
    ended = cofuse("fuse", "r.yaml", tmp_path / "out", cwd=here)
    assert ended.returncode == 0
    assert ended.stderr == "cofuse: note: density: task_arithmetic has no such parameter; nothing changes\n"


@pytest.mark.parametrize(
    ("text", "was", "now", "line", "said"),
    [
        (STACK, "[2, 6]", "[2, 7]", 7, ["no such layer", "layers 2 to 6", "0 to 5", "layer_range: [2, 6]"]),
        (STACK, "./code", "./cod", 6, ["no such file or folder", "./cod"]),
        (STACK, "[2, 6]", "[6, 2]", 7, ["layer_range"]),
        (STACK, "passthrough", "pasthrough", 1, ['did you mean "passthrough"?']),
        (MIX, "[1, 0.2]", "[1, 1.3]", 6, ["density", "between 0.0 and 1.0", "1.3"]),
        (MIX, "[1, 0.2]", "[high, low]", 6, ['"density" is a number', "high"]),
        (MIX, "value: 0.3", "value: 1.3", 12, ["between 0.0 and 1.0"]),
        (MIX, "filter: mlp", "fliter: mlp", 11, ['did you mean "filter"?']),
        (MIX, "density: [", "denisty: [", 6, ['did you mean "density"?']),
        (MIX, "./code", "./small", 7, ["a tensor is missing", f"no model.layers.{LAYERS - 1}."]),
        (MIX, "./code", "./narrow", 7, ["a tensor has another shape", "[16, 32]", "[32, 32]"]),
        (MIX, "ties", "slerp", 8, ['"t", which slerp needs']),
        (MIX + "tokenizer_source: ./cod\n", "./cod\n", "./cod\n", 15, ["no such file or folder"]),
        (MIX, "  - model: ./code\n", "  - model: {merge_method: linear, models: [{model: ./code}, {model: ./small}]}\n", 7, ["a tensor is missing"]),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_line_before_anything_is_written(
    text: str, was: str, now: str, line: int, said: list[str], here: Path
) -> None:
    if not (here / "small").exists():
        code = open_local(here / "code")
        kept = {n: code.read(n) for n in code.names()}
        Memory({n: t for n, t in kept.items() if f".{LAYERS - 1}." not in n}, files=code.files).save(here / "small")
        narrow = {n: t[:16] if n.endswith("layers.3.self_attn.q_proj.weight") else t for n, t in kept.items()}
        Memory(narrow, files=code.files).save(here / "narrow")
    assert was in text
    (here / "r.yaml").write_text(text.replace(was, now))
    before = sorted(here.rglob("*"))
    error = refused("fuse", "r.yaml", "out", cwd=here)
    assert all(word in error for word in said), error
    if "no such file" not in error or "tokenizer" not in text:
        assert f"r.yaml:{line}" in error
    assert sorted(here.rglob("*")) == before
