"""The merge workload of the benchmarks: a Llama of 517 M parameters in bf16, and finetunes of it.

    python benchmarks/workload.py DIR [--models 4] [--layers 8]

Weights are drawn, not trained: base N(0, 0.02), each finetune that plus N(0, 0.002), both rounded to bf16, so that many
changes are a few units in the last place and magnitudes tie, as in real bf16 finetunes. Made once, then found again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import ml_dtypes
import numpy as np

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


def make(folder: Path, models: int = 4, layers: int = 8) -> tuple[Path, list[Path]]:
    """The base's folder and the finetunes'."""
    from cofuse.checkpoint import build_header
    from cofuse.checkpoint.checkpoint import TensorSpec

    paths = [folder / "base", *(folder / f"tuned-{i}" for i in range(models))]
    specs = {name: TensorSpec("BF16", shape) for name, shape in shapes(layers).items()}
    header = build_header(specs, {"format": "pt"})
    for i, path in enumerate(paths):
        file = path / "model.safetensors"
        if file.exists() and file.stat().st_size == header.data_start + header.data_bytes:
            continue
        path.mkdir(parents=True, exist_ok=True)
        (path / "config.json").write_text(json.dumps({**CONFIG, "num_hidden_layers": layers}, indent=2))
        with (path / "making").open("wb") as out:
            out.write(header.raw)
            for place, name in enumerate(header.entries):
                size = specs[name].numel
                values = np.random.default_rng([0, place]).standard_normal(size, np.float32) * np.float32(0.02)
                values = values.astype(ml_dtypes.bfloat16).astype(np.float32)
                if i:
                    values += np.random.default_rng([i, place]).standard_normal(size, np.float32) * np.float32(0.002)
                out.write(values.astype(ml_dtypes.bfloat16).tobytes())
        (path / "making").rename(file)
    return paths[0], paths[1:]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", type=int, default=4)
    parser.add_argument("--layers", type=int, default=8)
    arguments = parser.parse_args()
    make(arguments.folder, arguments.models, arguments.layers)
