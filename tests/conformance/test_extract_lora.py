"""`cofuse extract-lora` beside `mergekit-extract-lora` on one small model."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from cofuse.checkpoint import Checkpoint, SafetensorsFile, open_local
from cofuse.fuse.lora import LoraSettings, extract_lora

ROOT = "base_model.model."
# mergekit 0.1.5 fails ("tuple" has no "append") unless every module that it keeps whole anyway is named too.
WHOLE = ("embed_tokens", "lm_head", "norm", "input_layernorm", "post_attention_layernorm")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder / "base")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    model.save_pretrained(folder / "tuned")
    return folder / "base", folder / "tuned"


def product(adapter: Checkpoint, module: str, kind: str = "lora", end: str = ".weight") -> np.ndarray:
    a, b = (adapter.read(f"{ROOT}{module}.{kind}_{part}{end}").double().numpy() for part in "AB")
    found: np.ndarray = b @ a
    return found


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        (["--max-rank", "8"], LoraSettings(rank=8)),
        (["--max-rank", "8", "--no-distribute-scale"], LoraSettings(rank=8, distribute_scale=False)),
        (["--max-rank", "64", "--sv-epsilon", "0.15"], LoraSettings(rank=64, epsilon=0.15)),
        (["--max-rank", "4", "--embed-lora"], LoraSettings(rank=4, embeddings=True)),
        (["--max-rank", "4", "-e", "mlp"], LoraSettings(rank=4, exclude=("mlp",))),
        (
            ["--max-rank", "4", *(f"--save-module={m}" for m in ("q_proj", *WHOLE))],
            LoraSettings(rank=4, save=("q_proj",)),
        ),
    ],
    ids=["rank", "on one side", "epsilon", "embeddings", "exclude", "save"],
)
def test_as_mergekit(
    models: tuple[Path, Path], options: list[str], settings: LoraSettings, mergekit_python: str, tmp_path: Path
) -> None:
    base, tuned = models
    where = ["--model", str(tuned), "--base-model", str(base), "--out-path", str(tmp_path / "theirs")]
    subprocess.run(
        [mergekit_python, "-m", "mergekit.scripts.extract_lora", *where, *options],
        check=True,
        capture_output=True,
        timeout=300,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    found = extract_lora(open_local(tuned), open_local(base), settings)
    found.save(tmp_path / "ours", base={"address": str(base)}, tuned={"address": str(tuned)})
    ours, theirs = (SafetensorsFile(tmp_path / who / "adapter_model.safetensors") for who in ("ours", "theirs"))
    assert set(ours.names()) == set(theirs.names())
    for module, made in found.products.items():
        ending = ("lora_embedding", "") if made.embedding else ("lora", ".weight")
        a, b = product(ours, module, *ending), product(theirs, module, *ending)
        assert np.linalg.norm(a - b) <= 2e-5 * np.linalg.norm(b)
    for name in ours.names():
        if "lora_" not in name:
            assert torch.equal(ours.read(name), theirs.read(name))
        else:
            assert ours.spec(name).shape == theirs.spec(name).shape
    mine, other = (json.loads((tmp_path / who / "adapter_config.json").read_bytes()) for who in ("ours", "theirs"))
    for key in ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "fan_in_fan_out", "task_type"):
        assert mine[key] == other[key], key
    assert sorted(mine["target_modules"]) == sorted(other["target_modules"])
    assert sorted(mine["modules_to_save"]) == sorted(set(other["modules_to_save"]))
