"""The merge workload of the benchmarks: a Llama of 517 M parameters in bf16, and finetunes of it.

    python benchmarks/workload.py DIR [--models 4] [--layers 8] [--zeros]

Weights are drawn, not trained: base N(0, 0.02), each finetune that plus N(0, 0.002), both rounded to bf16, so that many
changes are a few units in the last place and magnitudes tie, as in real bf16 finetunes. Made once, then found again.
With `--zeros` the files are holes of the same layout, which take no room on disk: for measuring memory alone.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cofuse.checkpoint import build_header
from cofuse.checkpoint.checkpoint import TensorSpec
from cofuse.checkpoint.floats import as_floats, as_stored

HIDDEN, INTERMEDIATE, VOCABULARY = 2048, 5120, 32000
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def shapes(layers: int) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for i in range(layers):
        at = f"model.layers.{i}."
        for name in ("q", "k", "v", "o"):
            found[f"{at}self_attn.{name}_proj.weight"] = (HIDDEN, HIDDEN)
        found[f"{at}mlp.gate_proj.weight"] = (INTERMEDIATE, HIDDEN)
        found[f"{at}mlp.up_proj.weight"] = (INTERMEDIATE, HIDDEN)
        found[f"{at}mlp.down_proj.weight"] = (HIDDEN, INTERMEDIATE)
        found[f"{at}input_layernorm.weight"] = (HIDDEN,)
        found[f"{at}post_attention_layernorm.weight"] = (HIDDEN,)
    return {**found, "model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCABULARY, HIDDEN)}


def make(folder: Path, models: int = 4, layers: int = 8, *, zeros: bool = False) -> tuple[Path, list[Path]]:
    """The base's folder and the finetunes'."""
    paths = [folder / "base", *(folder / f"tuned-{i}" for i in range(models))]
    specs = {name: TensorSpec("BF16", shape) for name, shape in shapes(layers).items()}
    header = build_header(specs, {"format": "pt"})
    for i, path in enumerate(paths):
        file = path / "model.safetensors"
        size = header.data_start + header.data_bytes
        if file.exists() and file.stat().st_size == size:
            continue
        path.mkdir(parents=True, exist_ok=True)
        (path / "config.json").write_text(json.dumps({**CONFIG, "num_hidden_layers": layers}, indent=2))
        with (path / "making").open("wb") as out:
            out.write(header.raw)
            if zeros:
                out.truncate(size)
            else:
                for place, name in enumerate(header.entries):
                    out.write(_values(i, place, specs[name].numel))
        (path / "making").rename(file)
    return paths[0], paths[1:]


def _values(model: int, place: int, size: int) -> bytes:
    """A tensor's bytes; model 0 is the base."""
    values = np.random.default_rng([0, place]).standard_normal(size, np.float32) * np.float32(0.02)
    if model:
        values = as_floats(as_stored(values, "BF16"), "BF16", np.float32)
        values += np.random.default_rng([model, place]).standard_normal(size, np.float32) * np.float32(0.002)
    return as_stored(values, "BF16").tobytes()


@dataclass(frozen=True)
class Merge:
    """How the benchmarks ask for a method.

    Attributes:
        parameters: of the recipe.
        own: of each model.
        models: how many of the finetunes are merged; all when None.
        base: whether the recipe names the base.
        peer: whether mergekit 0.1.5 has the method.
    """

    parameters: Mapping[str, Any] = field(default_factory=dict)
    own: Mapping[str, Any] = field(default_factory=dict)
    models: int | None = None
    base: bool = True
    peer: bool = True

    def recipe(self, method: str, base: Path, tuned: Sequence[Path]) -> dict[str, Any]:
        """In mergekit's words."""
        own = {"parameters": dict(self.own)} if self.own else {}
        found: dict[str, Any] = {
            "merge_method": method,
            "models": [{"model": str(path), **own} for path in tuned[: self.models]],
        }
        if self.base:
            found["base_model"] = str(base)
        if self.parameters:
            found["parameters"] = dict(self.parameters)
        return found

    def write(self, path: Path, method: str, base: Path, tuned: Sequence[Path]) -> Path:
        path.write_text(json.dumps(self.recipe(method, base, tuned), indent=1))  # JSON is YAML
        return path


# Four models with weights of 0.25 and half the entries kept, as the issue of this capability measured mergekit; two models
# where a method takes two.
QUARTER = {"weight": 0.25}
HALF = {"density": 0.5}
MERGES: dict[str, Merge] = {
    "linear": Merge(own=QUARTER, base=False),
    "passthrough": Merge(models=1, base=False),
    "task_arithmetic": Merge(own=QUARTER),
    "slerp": Merge({"t": 0.5}, models=1),
    "nuslerp": Merge(own={"weight": 0.5}, models=2, base=False),
    "multislerp": Merge(own=QUARTER, base=False),
    "karcher": Merge(base=False),
    "model_stock": Merge(),
    "nearswap": Merge({"t": 0.001}, models=1),
    "arcee_fusion": Merge(models=1),
    "ram": Merge(),
    "ramplus_tl": Merge(),
    "ties": Merge(HALF, QUARTER),
    "breadcrumbs": Merge(HALF, QUARTER),
    "breadcrumbs_ties": Merge(HALF, QUARTER),
    "dare_linear": Merge(HALF, QUARTER),
    "dare_ties": Merge(HALF, QUARTER),
    "della": Merge(HALF, QUARTER),
    "della_linear": Merge(HALF, QUARTER),
    "sce": Merge({"select_topk": 0.5}),
}
# What mergekit does not have runs with its own defaults and no comparison; these need more than that.
OURS: dict[str, Merge] = {
    "wise_ft": Merge({"alpha": 0.5}, models=1, peer=False),
}


def merge_of(method: str) -> Merge:
    """How a method is asked for, any row of the table."""
    from cofuse.fuse import METHODS

    if method in MERGES:
        return MERGES[method]
    return OURS.get(method, Merge(base=METHODS[method].needs_base is not False, peer=False))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", type=int, default=4)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--zeros", action="store_true")
    arguments = parser.parse_args()
    make(arguments.folder, arguments.models, arguments.layers, zeros=arguments.zeros)
