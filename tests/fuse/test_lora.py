"""A LoRA extracted from a finetune: the nearest one of its rank, in a form that PEFT and Cofuse read alike."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from cofuse.checkpoint import Checkpoint, Memory, open_local
from cofuse.checkpoint.adapter import Adapter
from cofuse.errors import CheckpointError, FuseError
from cofuse.fuse.lora import Extracted, LoraSettings, extract_lora

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")

SMALL: dict[str, Any] = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
BERT: dict[str, Any] = {**SMALL, "intermediate_size": 24, "max_position_embeddings": 16}
LLAMA: dict[str, Any] = {**BERT, "num_key_value_heads": 1, "bos_token_id": 1, "eos_token_id": 2}

MODELS: dict[str, Callable[[], nn.Module]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**LLAMA)),
    "llama with a tied head": lambda: LlamaForCausalLM(LlamaConfig(**LLAMA, tie_word_embeddings=True)),
    "qwen2, which has some biases": lambda: Qwen2ForCausalLM(Qwen2Config(**LLAMA)),
    "gpt2, whose weights lie the other way round": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=16, bos_token_id=0, eos_token_id=0)
    ),
    "bert with a classifier": lambda: BertForSequenceClassification(BertConfig(**BERT)),
    "bert with a tied head": lambda: BertForMaskedLM(BertConfig(**BERT)),
}


def tuned_from(base: nn.Module, seed: int = 0, only: str = "") -> nn.Module:
    """The model with every parameter (whose name has `only`) moved a little, of full rank."""
    tuned = copy.deepcopy(base)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if only in name:
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return tuned


def saved(model: nn.Module, folder: Path) -> Checkpoint:
    model.save_pretrained(folder)  # type: ignore[operator]
    return open_local(folder)


def write(found: Extracted, folder: Path) -> Path:
    found.save(folder, base={"address": "base"}, tuned={"address": "tuned"})
    return folder


def logits(model: nn.Module) -> torch.Tensor:
    ids = torch.arange(12).reshape(2, 6)
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=ids).logits
        return found


def pair(change: dict[str, torch.Tensor], seed: int = 0, **config: Any) -> tuple[Memory, Memory]:
    """A base of random tensors, and the base with these changes."""
    generator = torch.Generator().manual_seed(seed)
    base = {name: torch.randn(delta.shape, generator=generator) for name, delta in change.items()}
    files = {"config.json": json.dumps(config).encode()}
    return Memory({n: base[n] + d for n, d in change.items()}, files=files), Memory(base, files=files)


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def best(delta: torch.Tensor, rank: int) -> torch.Tensor:
    u, s, vt = torch.linalg.svd(delta.double(), full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vt[:rank]


# Laws


@given(st.integers(2, 9), st.integers(2, 9), st.integers(1, 9), st.booleans())
def test_the_error_is_the_tail_of_the_singular_values(rows: int, columns: int, rank: int, spread: bool) -> None:
    delta = noise(rows, columns)
    tuned, base = pair({"up.weight": delta})
    found = extract_lora(tuned, base, LoraSettings(rank=rank, distribute_scale=spread))
    squares = torch.linalg.svdvals((tuned.read("up.weight") - base.read("up.weight")).double()) ** 2
    assert found.products["up"].error == pytest.approx(math.sqrt(squares[rank:].sum() / squares.sum()), abs=2e-6)
    assert found.error == pytest.approx(found.products["up"].error)


@pytest.mark.parametrize("alpha", [None, 2.0, 24])
@pytest.mark.parametrize("spread", [True, False])
def test_on_its_base_it_is_the_base_and_the_best_approximation(
    alpha: float | None, spread: bool, tmp_path: Path
) -> None:
    tuned, base = pair({"up.weight": noise(12, 9), "down.weight": noise(3, 12, seed=2)})
    found = extract_lora(tuned, base, LoraSettings(rank=4, alpha=alpha, distribute_scale=spread))
    merged = Adapter(write(found, tmp_path / "out"), base)
    for name in base.names():
        expected = base.read(name).double() + best(tuned.read(name) - base.read(name), 4)
        torch.testing.assert_close(merged.read(name).double(), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_full_rank_gives_the_tuned_model_back_within_rounding(dtype: torch.dtype, tmp_path: Path) -> None:
    base = Memory({"up.weight": noise(12, 9).to(dtype)})
    tuned = Memory({"up.weight": (noise(12, 9) + 0.05 * noise(12, 9, seed=2)).to(dtype)})
    found = extract_lora(tuned, base, LoraSettings(rank=9, dtype="F32"))
    merged = Adapter(write(found, tmp_path / "out"), base)
    # One unit in the last place of the dtype.
    torch.testing.assert_close(
        merged.read("up.weight"), tuned.read("up.weight"), rtol=torch.finfo(dtype).eps, atol=1e-6
    )


def test_the_error_counts_the_factors_as_they_are_stored(tmp_path: Path) -> None:
    tuned, base = pair({"up.weight": noise(12, 9)})
    found = extract_lora(tuned, base, LoraSettings(rank=9, dtype="BF16"))
    product = found.products["up"]
    assert 1e-4 < product.error < 1e-2
    merged = Adapter(write(found, tmp_path / "out"), base)
    delta = tuned.read("up.weight") - base.read("up.weight")
    left = torch.linalg.norm(tuned.read("up.weight") - merged.read("up.weight")) / torch.linalg.norm(delta)
    assert product.error == pytest.approx(float(left), rel=1e-3)


def test_an_error_picks_the_rank_of_each_tensor(tmp_path: Path) -> None:
    low = noise(20, 2) @ noise(2, 15) + 0.001 * noise(20, 15, seed=3)
    tuned, base = pair({"a.up.weight": low, "b.up.weight": noise(20, 15, seed=4)})
    found = extract_lora(tuned, base, LoraSettings(max_error=0.05))
    ranks = {module: product.rank for module, product in found.products.items()}
    assert ranks["a.up"] == 2 < ranks["b.up"] <= 15
    assert all(product.error <= 0.05 for product in found.products.values())
    config = found.config("base")
    assert (config["r"], config["rank_pattern"], config["alpha_pattern"]) == (ranks["b.up"], {"a.up": 2}, {"a.up": 2})
    merged = Adapter(write(found, tmp_path / "out"), base)
    for name in base.names():
        left = torch.linalg.norm(tuned.read(name) - merged.read(name))
        assert left / torch.linalg.norm(tuned.read(name) - base.read(name)) <= 0.0501


def test_a_rank_bounds_what_an_error_picks() -> None:
    tuned, base = pair({"up.weight": noise(20, 15)})
    found = extract_lora(tuned, base, LoraSettings(max_error=0.05, rank=3))
    assert found.products["up"].rank == 3
    assert found.products["up"].error > 0.05


def test_an_error_holds_though_factors_are_rounded() -> None:
    tuned, base = pair({"up.weight": noise(40, 30)})
    found = extract_lora(tuned, base, LoraSettings(max_error=0.01, dtype="BF16"))
    assert found.products["up"].error <= 0.01


def test_the_whole_error_weighs_each_tensor_by_its_change() -> None:
    tuned, base = pair({"a.weight": noise(8, 8), "b.weight": 3 * noise(8, 8, seed=2), "norm.weight": noise(8)})
    found = extract_lora(tuned, base, LoraSettings(rank=2, exclude=("norm",)))
    deltas = {n: float(torch.linalg.norm(tuned.read(n) - base.read(n))) for n in base.names()}
    left = [found.products[m].error * deltas[f"{m}.weight"] for m in ("a", "b")] + [found.left["norm.weight"]]
    assert found.left["norm.weight"] == pytest.approx(deltas["norm.weight"], rel=1e-6)
    assert found.error == pytest.approx(math.hypot(*left) / math.hypot(*deltas.values()), rel=1e-5)


# What PEFT makes of it


@pytest.mark.parametrize("embeddings", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_peft_loads_it_as_the_tuned_model(name: str, embeddings: bool, tmp_path: Path) -> None:
    base = MODELS[name]()
    tuned = tuned_from(base)
    before, after = saved(base, tmp_path / "base"), saved(tuned, tmp_path / "tuned")
    found = extract_lora(after, before, LoraSettings(rank=64, embeddings=embeddings))
    out = write(found, tmp_path / "out")
    model = PeftModel.from_pretrained(copy.deepcopy(base), out)
    apart = float((logits(base) - logits(tuned)).abs().max())
    torch.testing.assert_close(logits(model), logits(tuned), rtol=0, atol=1e-4 * apart)
    merged = Adapter(out, before)
    assert (merged.names(), merged.aliases) == (before.names(), before.aliases)
    for tensor in after.names():
        torch.testing.assert_close(merged.read(tensor), after.read(tensor), rtol=0, atol=1e-6)
    torch.testing.assert_close(logits(model.merge_and_unload()), logits(tuned), rtol=0, atol=1e-4 * apart)


@pytest.mark.parametrize("name", ["llama", "gpt2, whose weights lie the other way round"])
def test_peft_and_cofuse_agree_below_full_rank(name: str, tmp_path: Path) -> None:
    base = MODELS[name]()
    before, after = saved(base, tmp_path / "base"), saved(tuned_from(base), tmp_path / "tuned")
    out = write(extract_lora(after, before, LoraSettings(rank=3, alpha=6)), tmp_path / "out")
    merged = PeftModel.from_pretrained(base, out).merge_and_unload().state_dict()
    ours = Adapter(out, before)
    for tensor in ours.names():
        torch.testing.assert_close(ours.read(tensor), merged[tensor], rtol=0, atol=1e-6)


@pytest.mark.parametrize("only", ["self_attn.q_proj", "layers.1.", "up_proj"])
def test_only_what_changed_is_in_it(only: str, tmp_path: Path) -> None:
    base = MODELS["llama"]()
    tuned = tuned_from(base, only=only)
    before, after = saved(base, tmp_path / "base"), saved(tuned, tmp_path / "tuned")
    found = extract_lora(after, before, LoraSettings(rank=64))
    assert all(only in f"{name}." for name in (*found.products, *found.whole))
    model = PeftModel.from_pretrained(copy.deepcopy(base), write(found, tmp_path / "out"))
    torch.testing.assert_close(logits(model), logits(tuned), rtol=0, atol=1e-5)
    unchanged = (n for n in before.names() if only not in n)
    assert found.unchanged == set(unchanged)


class Conv(nn.Module):
    """Convolutions, one of them by channel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, (2, 3))
        self.by_channel = nn.Conv1d(8, 8, 3, groups=8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.by_channel(self.conv(x).flatten(2))  # type: ignore[no-any-return]


def test_convolutions(tmp_path: Path) -> None:
    base = Conv()
    tuned = tuned_from(base)
    before, after = Memory(base.state_dict()), Memory(tuned.state_dict())
    found = extract_lora(after, before, LoraSettings(rank=64))
    assert set(found.products) == {"conv"}
    out = write(found, tmp_path / "out")
    x = noise(1, 3, 4, 5)
    model = PeftModel.from_pretrained(base, out)
    torch.testing.assert_close(model(x), tuned(x), rtol=0, atol=1e-5)
    merged = Adapter(out, before)
    for name in after.names():
        torch.testing.assert_close(merged.read(name), after.read(name), rtol=0, atol=1e-6)


# What is chosen


def chosen(**settings: Any) -> Extracted:
    change = {
        "layers.0.q_proj.weight": noise(6, 6),
        "layers.0.q_proj.bias": noise(6),
        "layers.1.q_proj.weight": noise(6, 6, seed=2),
        "layers.1.up_proj.weight": noise(6, 6, seed=3),
        "norm.weight": noise(6, seed=4),
        "embed_tokens.weight": noise(10, 6, seed=5),
        "lm_head.weight": noise(10, 6, seed=6),
    }
    return extract_lora(*pair(change), LoraSettings(**settings))


@pytest.mark.parametrize(
    ("settings", "products"),
    [
        ({}, {"layers.0.q_proj", "layers.1.q_proj", "layers.1.up_proj"}),
        ({"modules": ("q_proj",)}, {"layers.0.q_proj", "layers.1.q_proj"}),
        ({"modules": ("layers.1.q_proj",)}, {"layers.1.q_proj"}),
        ({"include": ("layers.1.*", "norm")}, {"layers.1.q_proj", "layers.1.up_proj"}),
        ({"include": ("layers",), "exclude": ("*.q_proj",)}, {"layers.1.up_proj"}),
        ({"save": ("up_proj",)}, {"layers.0.q_proj", "layers.1.q_proj"}),
        ({"embeddings": True, "include": ("embed", "lm_head")}, {"embed_tokens", "lm_head"}),
    ],
)
def test_which_modules_become_products(settings: dict[str, Any], products: set[str]) -> None:
    found = chosen(**settings)
    assert set(found.products) == products
    everything = {f"{m}.weight" for m in found.products} | set(found.whole) | set(found.biases) | set(found.left)
    assert len(everything) == 7  # nothing that changed is forgotten


def test_what_is_no_product_is_kept_whole_or_left_out() -> None:
    tables = {"norm.weight", "embed_tokens.weight", "lm_head.weight"}
    assert set(chosen().whole) == tables
    assert set(chosen().biases) == {"layers.0.q_proj.bias"}
    assert set(chosen(skip=True).left) == tables
    assert chosen(skip=True).whole == {}
    assert "norm.weight" in chosen(skip=True, save=("norm",)).whole


def test_names_are_short_where_that_names_the_same_modules() -> None:
    assert chosen().config("base")["target_modules"] == ["q_proj", "up_proj"]
    assert chosen(modules=("layers.1.q_proj",)).config("base")["target_modules"] == ["layers.1.q_proj"]


@pytest.mark.parametrize(
    ("address", "name", "revision"),
    [("./base", "./base", None), ("hf:org/base@v1", "org/base", "v1"), ("hf:org/base", "org/base", None)],
)
def test_peft_is_told_the_base(address: str, name: str, revision: str | None) -> None:
    config = chosen().config(address)
    assert (config["base_model_name_or_path"], config["revision"]) == (name, revision)


def test_singular_values_that_are_too_small_are_dropped() -> None:
    values = torch.tensor([5.0, 3.0, 0.01, 0.001])
    tuned, base = Memory({"up.weight": torch.diag(values)}), Memory({"up.weight": torch.zeros(4, 4)})
    assert extract_lora(tuned, base, LoraSettings(epsilon=0.1)).products["up"].rank == 2
    assert extract_lora(tuned, base, LoraSettings(epsilon=100)).products["up"].rank == 1


def test_a_bias_alone_needs_no_weight(tmp_path: Path) -> None:
    tuned, base = pair({"a.weight": noise(4, 4), "b.weight": torch.zeros(4, 4), "b.bias": noise(4)})
    found = extract_lora(tuned, base)
    assert (set(found.biases), set(found.whole), found.config("x")["bias"]) == ({"b.bias"}, set(), "all")
    merged = Adapter(write(found, tmp_path / "out"), base)
    torch.testing.assert_close(merged.read("b.bias"), tuned.read("b.bias"))


def test_an_embedding_that_has_grown_is_kept_whole(tmp_path: Path) -> None:
    tuned, base = pair({"up.weight": noise(4, 4), "embed_tokens.weight": noise(10, 4)})
    grown = Memory({"up.weight": tuned.read("up.weight"), "embed_tokens.weight": noise(12, 4)})
    found = extract_lora(grown, base, LoraSettings(embeddings=True))
    assert set(found.whole) == {"embed_tokens.weight"}
    merged = Adapter(write(found, tmp_path / "out"), base)
    assert merged.spec("embed_tokens.weight").shape == (12, 4)


# The record


def test_the_record_says_what_is_left(tmp_path: Path) -> None:
    found = chosen(rank=2, exclude=("norm",))
    record = json.loads((write(found, tmp_path / "out") / "cofuse.json").read_bytes())
    assert record["products"] == {m: {"error": float(f"{p.error:.6g}"), "rank": 2} for m, p in found.products.items()}
    assert record["error"] == float(f"{found.error:.6g}")
    assert set(record["left"]) == {"norm.weight"}
    assert record["settings"] == {"rank": 2, "exclude": ["norm"], "distribute_scale": True}
    assert (record["base"], record["tuned"]) == ({"address": "base"}, {"address": "tuned"})


def test_the_same_extraction_writes_the_same_bytes(tmp_path: Path) -> None:
    one, two = (write(chosen(rank=2), tmp_path / name) for name in ("one", "two"))
    assert sorted(p.name for p in one.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "cofuse.json",
    ]
    for path in one.iterdir():
        assert path.read_bytes() == (two / path.name).read_bytes()


def test_a_folder_with_other_things_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "train.py").write_text("mine")
    with pytest.raises(CheckpointError, match="other things"):
        write(chosen(), tmp_path / "out")


# Refusals


def refused(tuned: dict[str, torch.Tensor], base: dict[str, torch.Tensor], **settings: Any) -> str:
    with pytest.raises(FuseError) as caught:
        extract_lora(Memory(tuned), Memory(base), LoraSettings(**settings))
    return str(caught.value)


W = {"up.weight": torch.zeros(3, 3)}
V = {"up.weight": torch.ones(3, 3)}


def test_models_that_do_not_fit() -> None:
    assert "lacks a tensor" in refused({}, W)
    assert "another shape" in refused({"up.weight": torch.ones(3, 4)}, W)
    assert "another kind of dtype" in refused({"up.weight": torch.ones(3, 3, dtype=torch.int32)}, W)
    assert "not finite" in refused({"up.weight": torch.full((3, 3), float("nan"))}, W)
    assert "no weight changed" in refused(W, W)
    assert "no weight changed" in refused({**W, "norm.weight": torch.ones(3)}, {**W, "norm.weight": torch.zeros(3)})


def test_what_is_no_module_cannot_be_held() -> None:
    more = {"token": torch.ones(3)}
    assert "cannot hold" in refused({**V, **more}, {**W, "token": torch.zeros(3)})
    found = extract_lora(Memory({**V, **more}), Memory({**W, "token": torch.zeros(3)}), LoraSettings(skip=True))
    assert set(found.left) == {"token"}


@pytest.mark.parametrize(
    "settings",
    [
        {"rank": 0},
        {"max_error": 1.0},
        {"max_error": -0.1},
        {"alpha": 0.0},
        {"alpha": math.inf},
        {"alpha": 2.0, "max_error": 0.1},
        {"dtype": "I8"},
    ],
)
def test_settings_that_mean_nothing(settings: dict[str, Any]) -> None:
    with pytest.raises(FuseError):
        LoraSettings(**settings)


def test_the_slow_twin_agrees() -> None:
    """The products of `extract_lora` beside numpy's exact decomposition in float64, on a weight above `EXACT`."""
    generator = np.random.default_rng(0)
    delta = generator.standard_normal((300, 4)) @ generator.standard_normal((4, 280))
    tuned = Memory({"up.weight": torch.from_numpy(delta).float()})
    base = Memory({"up.weight": torch.zeros(300, 280)})
    product = extract_lora(tuned, base, LoraSettings(rank=4)).products["up"]
    a = np.frombuffer(product.a[1], np.float32).reshape(product.a[0].shape)
    b = np.frombuffer(product.b[1], np.float32).reshape(product.b[0].shape)
    np.testing.assert_allclose(b @ a, delta, atol=1e-4)
