"""PEFT is the oracle: an adapter on its base is what `merge_and_unload` makes of it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ViTConfig,
    ViTModel,
)

from cofuse.checkpoint import Checkpoint, Memory, content_id, open_local, save
from cofuse.checkpoint.adapter import PIN, Adapter
from cofuse.errors import AdapterError

from .models import random_tensor, same_bits

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

BERT = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


def bert() -> nn.Module:
    return BertModel(BertConfig(**BERT))


def classifier() -> nn.Module:
    return BertForSequenceClassification(BertConfig(**BERT))


def gpt2() -> nn.Module:
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=20, n_embd=16, n_layer=2, n_head=2, n_positions=8, bos_token_id=0, eos_token_id=0)
    )


def llama(tied: bool = False) -> nn.Module:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, attention_bias=True, tie_word_embeddings=tied, bos_token_id=1, eos_token_id=2,
        )
    )  # fmt: skip


def vit() -> nn.Module:
    return ViTModel(
        ViTConfig(
            image_size=8, patch_size=4, num_channels=1, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=24,
        )
    )  # fmt: skip


class Parts(nn.Module):
    """Kinds of modules that the language models lack."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, (2, 3))
        self.conv1 = nn.Conv1d(3, 4, 2)
        self.emb = nn.Embedding(7, 5)
        self.lin = nn.Linear(5, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lin(x)


def lora(**changes: Any) -> LoraConfig:
    return LoraConfig(**{"r": 3, "lora_alpha": 7, **changes})


BERT_ALL = ["query", "key", "value", "dense"]
CASES: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "lora": (bert, lora(target_modules=["query", "value"])),
    "lora on everything": (bert, lora(target_modules=BERT_ALL)),
    "lora under a class": (classifier, lora(target_modules=["query", "classifier"])),
    "all linear": (classifier, lora(target_modules="all-linear")),
    "rslora": (bert, lora(target_modules=["query"], use_rslora=True)),
    "gaussian": (bert, lora(target_modules=["query"], init_lora_weights="gaussian")),
    "orthogonal": (bert, lora(target_modules=["query"], r=4, init_lora_weights="orthogonal")),
    "mica": (bert, lora(target_modules=["query"], init_lora_weights="mica")),
    "patterns": (
        bert,
        lora(
            target_modules=["query", "value"],
            rank_pattern={"layer.0.attention.self.query": 5, "value": 2},
alpha_pattern={r"layer\.1\.attention\.self\.value": 11, "query": 2},
        ),
    ),
    "patterns and rslora": (bert, lora(target_modules=["query"], rank_pattern={"query": 5}, use_rslora=True)),
    "patterns from the start": (
        classifier,
        lora(target_modules=["query"], alpha_pattern={"^bert.encoder.layer.1.attention.self.query": 4}),
    ),
    "dora": (bert, lora(target_modules=BERT_ALL, use_dora=True)),
    "modules to save": (classifier, lora(target_modules=["query"], modules_to_save=["classifier"])),
    "classification": (classifier, lora(target_modules=["query"], task_type="SEQ_CLS")),
    "bias all": (bert, lora(target_modules=["query"], bias="all")),
    "bias of lora": (bert, lora(target_modules=["query", "dense"], bias="lora_only")),
    "lora bias": (bert, lora(target_modules=["query", "dense"], lora_bias=True)),
    "embeddings": (bert, lora(target_modules=["word_embeddings", "query"])),
    "embeddings, dora": (bert, lora(target_modules=["word_embeddings"], use_dora=True)),
    "conv1d": (gpt2, lora(target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True)),
    "conv1d unsaid": (gpt2, lora(target_modules=["c_attn", "c_proj", "c_fc"])),
    "conv1d, dora": (gpt2, lora(target_modules=["c_attn", "c_proj"], use_dora=True, fan_in_fan_out=True)),
    "conv1d, embeddings": (gpt2, lora(target_modules=["c_attn", "wte"], fan_in_fan_out=True)),
    "llama": (llama, lora(target_modules=["q_proj", "k_proj", "down_proj"])),
    "llama, all saved": (llama, lora(target_modules=["q_proj"], modules_to_save=["lm_head", "embed_tokens"])),
    "tied": (lambda: llama(tied=True), lora(target_modules=["q_proj"])),
    "tied, embedding": (lambda: llama(tied=True), lora(target_modules=["embed_tokens"])),
    "tied, head saved": (lambda: llama(tied=True), lora(target_modules=["q_proj"], modules_to_save=["lm_head"])),
    "tied, embedding saved": (lambda: llama(tied=True), lora(target_modules=["q_proj"], modules_to_save=["embed_tokens"])),
    "vit": (vit, lora(target_modules=["query", "projection"])),
    "convolutions": (Parts, lora(target_modules=["conv", "conv1", "emb", "lin"])),
    "convolutions, dora": (Parts, lora(target_modules=["conv", "conv1", "emb", "lin"], use_dora=True)),
    "ia3": (bert, IA3Config(target_modules=["key", "value"], feedforward_modules=[])),
    "ia3, feed-forward": (
        bert,
        IA3Config(target_modules=["key", "value", "output.dense"], feedforward_modules=["output.dense"]),
    ),
    "ia3, conv1d": (
        gpt2,
        IA3Config(target_modules=["c_attn", "mlp.c_proj"], feedforward_modules=["mlp.c_proj"], fan_in_fan_out=True),
    ),
    "ia3, classification": (
        classifier,
        IA3Config(target_modules=["key"], feedforward_modules=[], modules_to_save=["classifier"]),
    ),
}  # fmt: skip


def trained(make: Callable[[], nn.Module], config: Any, folder: Path) -> tuple[Memory, dict[str, torch.Tensor], Path]:
    """A base, what PEFT merges it to after something like training, and the adapter's folder."""
    torch.manual_seed(0)
    model = make().eval()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.3)
    base = Memory(copy.deepcopy(model.state_dict()), where="base")
    wrapped = get_peft_model(model, copy.deepcopy(config)).eval()
    for name, parameter in wrapped.named_parameters():
        if parameter.requires_grad:
            positive = "magnitude" in name or "ia3" in name
            parameter.data = torch.rand_like(parameter) + 0.5 if positive else torch.randn_like(parameter) * 0.3
    wrapped.save_pretrained(folder)
    return base, wrapped.merge_and_unload().state_dict(), folder


@pytest.mark.parametrize("case", CASES)
def test_an_adapter_is_what_peft_merges(case: str, tmp_path: Path) -> None:
    base, merged, folder = trained(*CASES[case], tmp_path / "adapter")
    adapter = Adapter(folder, base)
    assert set(adapter.names()) | set(adapter.aliases) == set(merged)
    for name, expected in merged.items():
        torch.testing.assert_close(
            adapter.read(name), expected, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )
        assert adapter.spec(name) == (base.spec(name) if name in base else adapter.spec(name))
    changed = sum(not torch.equal(merged[name], base.read(name)) for name in merged)
    assert changed > 0, "an adapter that changes nothing tests nothing"


@pytest.mark.parametrize(
    "case", ["dora", "embeddings, dora", "conv1d, dora", "ia3, conv1d", "tied, head saved", "convolutions"]
)
def test_blocks_and_ranges_are_the_whole(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, _, folder = trained(*CASES[case], tmp_path / "adapter")
    # Small groups, so that a tensor has several.
    monkeypatch.setattr("cofuse.checkpoint.adapter.BLOCK_BYTES", 200)
    adapter = Adapter(folder, base)
    for name in (*adapter.names(), *adapter.aliases):
        whole = bytes(adapter.read_bytes(name))
        assert b"".join(bytes(adapter.read_bytes(name, a, b)) for a, b in adapter.blocks(name, 64)) == whole
        for a, b in [(0, 0), (1, 3), (len(whole) // 3, len(whole) // 2), (len(whole) - 1, len(whole))]:
            assert bytes(adapter.read_bytes(name, a, b)) == whole[a:b]
        rows = adapter.spec(name).shape
        if rows:
            assert same_bits(adapter.read(name, slice(1, 3)), adapter.read(name)[1:3])


def test_saving_an_adapter_merges_it(tmp_path: Path) -> None:
    base, merged, folder = trained(*CASES["tied, head saved"], tmp_path / "adapter")
    adapter = Adapter(folder, base)
    ids = set()
    for threads in (1, 2, 8):
        save(adapter, tmp_path / "merged", threads=threads, block=64)
        ids.add(content_id(open_local(tmp_path / "merged")))
    assert ids == {content_id(adapter)}
    got = open_local(tmp_path / "merged")
    assert set(got.names()) | set(got.aliases) == set(merged)


def test_a_tie_that_the_adapter_leaves_alone_stays(tmp_path: Path) -> None:
    base, _, folder = trained(*CASES["tied, embedding"], tmp_path / "adapter")
    assert dict(Adapter(folder, base).aliases) == dict(base.aliases) == {"lm_head.weight": "model.embed_tokens.weight"}


def test_an_adapter_of_a_class_fits_a_bare_base(tmp_path: Path) -> None:
    """Trained on BertForSequenceClassification, opened on the BertModel that it was made from."""
    base, merged, folder = trained(*CASES["classification"], tmp_path / "adapter")
    bare = Memory({n.removeprefix("bert."): base.read(n) for n in base.names() if n.startswith("bert.")})
    adapter = Adapter(folder, bare)
    for name in bare.names():
        torch.testing.assert_close(adapter.read(name), merged[f"bert.{name}"], rtol=1e-5, atol=1e-5)
    assert set(adapter.names()) == {*bare.names(), "classifier.weight", "classifier.bias"}


def test_half_precision_is_merged_in_single(tmp_path: Path) -> None:
    base, merged, folder = trained(*CASES["lora"], tmp_path / "adapter")
    half = Memory({n: base.read(n).bfloat16() for n in base.names()})
    adapter = Adapter(folder, half)
    for name in half.names():
        assert adapter.read(name).dtype == torch.bfloat16
        torch.testing.assert_close(adapter.read(name).float(), merged[name], rtol=0.02, atol=0.02)


def test_prompt_tuning_is_refused(tmp_path: Path) -> None:
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    model = gpt2()
    base = Memory(model.state_dict())
    get_peft_model(model, config).save_pretrained(tmp_path)
    with pytest.raises(AdapterError, match="kind of adapter is refused") as caught:
        Adapter(tmp_path, base)
    assert caught.value.got == "PROMPT_TUNING"


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora"])
def test_an_initialisation_that_rewrites_the_base_is_refused_until_peft_converts_it(start: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = bert()
    base = Memory(copy.deepcopy(model.state_dict()))
    wrapped = get_peft_model(model, lora(target_modules=["query"], init_lora_weights=start))
    wrapped.peft_config["default"].init_lora_weights = True
    wrapped.save_pretrained(tmp_path / "initial")
    wrapped.peft_config["default"].init_lora_weights = start
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data += 0.1
    wrapped.save_pretrained(tmp_path / "raw")
    with pytest.raises(AdapterError, match="rewrote its base") as caught:
        Adapter(tmp_path / "raw", base)
    assert caught.value.got == start
    wrapped.save_pretrained(tmp_path / "plain", path_initial_model_for_weight_conversion=str(tmp_path / "initial"))
    merged = wrapped.merge_and_unload().state_dict()
    adapter = Adapter(tmp_path / "plain", base)
    for name, expected in merged.items():
        torch.testing.assert_close(adapter.read(name), expected, rtol=1e-4, atol=1e-4)


def test_ia3_on_a_convolution_is_refused(tmp_path: Path) -> None:
    config = IA3Config(target_modules=["conv"], feedforward_modules=[])
    base, _, folder = trained(Parts, config, tmp_path / "adapter")
    with pytest.raises(AdapterError, match="convolution"):
        Adapter(folder, base)


@pytest.fixture
def adapted(tmp_path: Path) -> tuple[Memory, Path]:
    base, _, folder = trained(*CASES["lora"], tmp_path / "adapter")
    return base, folder


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **changes}))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None], **metadata: str) -> None:
    path = folder / "adapter_model.safetensors"
    held = load_file(path)
    change(held)
    save_file(held, path, metadata={"format": "pt", **metadata})


@pytest.mark.parametrize(
    "key",
    ["layer_replication", "target_parameters", "trainable_token_indices", "alora_invocation_tokens", "use_qalora",
     "use_bdlora", "arrow_config", "kasa_config", "monteclora_config"],
)  # fmt: skip
def test_a_variant_that_is_not_a_product_of_two_matrices_is_refused(key: str, adapted: tuple[Memory, Path]) -> None:
    edit_config(adapted[1], **{key: [1]})
    with pytest.raises(AdapterError, match="refused") as caught:
        Adapter(adapted[1], adapted[0])
    assert caught.value.got == key


@pytest.mark.parametrize(
    "changes",
    [
        {"peft_type": None},
        {"peft_type": "LOHA"},
        {"init_lora_weights": "something new"},
        {"lora_alpha": None},
        {"lora_alpha": "8"},
        {"lora_alpha": float("nan")},
        {"alpha_pattern": {"(": 1}},
        {"alpha_pattern": {"query": "many"}},
        {"alpha_pattern": ["query"]},
    ],
    ids=str,
)
def test_a_config_that_makes_no_sense_is_a_typed_error(changes: dict[str, Any], adapted: tuple[Memory, Path]) -> None:
    edit_config(adapted[1], **changes)
    with pytest.raises(AdapterError):
        Adapter(adapted[1], adapted[0])


def first(part: str) -> Callable[[dict[str, torch.Tensor]], str]:
    return lambda held: next(name for name in held if name.endswith(part))


@pytest.mark.parametrize(
    ("part", "tensor", "says"),
    [
        ("lora_A.weight", None, "half of a LoRA pair"),
        ("lora_B.weight", None, "half of a LoRA pair"),
        ("lora_A.weight", torch.ones(3, 15), "does not fit"),
        ("lora_A.weight", torch.ones(4, 16), "does not fit"),
        ("lora_B.weight", torch.ones(17, 3), "does not fit"),
        ("lora_A.weight", torch.ones(0, 16), "does not fit"),
        ("lora_A.weight", torch.ones(3), "does not fit"),
        ("lora_A.weight", torch.tensor(1.0), "half of a LoRA pair"),
    ],
    ids=str,
)
def test_parts_that_do_not_fit_are_refused(
    part: str, tensor: torch.Tensor | None, says: str, adapted: tuple[Memory, Path]
) -> None:
    def change(held: dict[str, torch.Tensor]) -> None:
        name = first(part)(held)
        del held[name]
        if tensor is not None:
            held[name] = tensor

    edit_weights(adapted[1], change)
    with pytest.raises(AdapterError, match=says):
        Adapter(adapted[1], adapted[0])


def test_a_part_of_an_unknown_kind_is_refused(adapted: tuple[Memory, Path]) -> None:
    edit_weights(adapted[1], lambda held: held.update({"base_model.model.encoder.x.lora_diag": torch.ones(1)}))
    with pytest.raises(AdapterError, match="not known"):
        Adapter(adapted[1], adapted[0])


def test_both_ends_of_a_tie_cannot_be_changed(tmp_path: Path) -> None:
    base, _, folder = trained(*CASES["tied, embedding"], tmp_path / "adapter")
    a, b = torch.ones(3, 16), torch.ones(20, 3)
    head = "base_model.model.lm_head"
    edit_weights(folder, lambda held: held.update({f"{head}.lora_A.weight": a, f"{head}.lora_B.weight": b}))
    with pytest.raises(AdapterError, match="two changes of one tied tensor"):
        Adapter(folder, base)


@pytest.mark.parametrize("wrong", ["another width", "another model", "nothing"])
def test_a_wrong_base_is_refused(wrong: str, adapted: tuple[Memory, Path]) -> None:
    bases: dict[str, Checkpoint] = {
        "another width": Memory(BertModel(BertConfig(**{**BERT, "hidden_size": 20})).state_dict()),
        "another model": Memory(llama().state_dict()),
        "nothing": Memory({}),
    }
    with pytest.raises(AdapterError, match=r"does not fit|base lacks"):
        Adapter(adapted[1], bases[wrong])


def test_a_pinned_content_id_is_checked(adapted: tuple[Memory, Path]) -> None:
    base, folder = adapted
    edit_weights(folder, lambda held: None, **{PIN: content_id(base)})
    assert Adapter(folder, base).names() == base.names()
    held = {name: base.read(name) for name in base.names()}
    held["embeddings.LayerNorm.bias"] = random_tensor(9, (16,))
    with pytest.raises(AdapterError, match="belongs to another base") as caught:
        Adapter(folder, Memory(held))
    assert caught.value.expected == f"content id {content_id(base)}"


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_missing_file_is_a_typed_error(file: str, adapted: tuple[Memory, Path]) -> None:
    (adapted[1] / file).unlink()
    with pytest.raises(AdapterError):
        Adapter(adapted[1], adapted[0])


@pytest.mark.parametrize("raw", [b"", b"[]", b"{", b"[" * 50_000])
def test_a_damaged_config_is_a_typed_error(raw: bytes, adapted: tuple[Memory, Path]) -> None:
    (adapted[1] / "adapter_config.json").write_bytes(raw)
    with pytest.raises(AdapterError, match="adapter_config"):
        Adapter(adapted[1], adapted[0])


def test_patterns_that_overlap_are_read_as_peft_reads_the_folder(tmp_path: Path) -> None:
    """PEFT sorts the patterns when it saves them, and the first that matches counts: its own merge, before, differs."""
    config = lora(target_modules=["query"], alpha_pattern={"query": 2, "layer.0.attention.self.query": 99})
    base, merged, folder = trained(bert, config, tmp_path / "adapter")
    model = bert()
    model.load_state_dict({name: base.read(name) for name in base.names()})
    again = PeftModel.from_pretrained(model, folder).merge_and_unload().state_dict()
    adapter = Adapter(folder, base)
    for name, expected in again.items():
        torch.testing.assert_close(adapter.read(name), expected, rtol=1e-5, atol=1e-5)
    query = "encoder.layer.0.attention.self.query.weight"
    assert not torch.allclose(merged[query], again[query])
