"""The tables agree with what transformers' own classes say of layers and vocabularies."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import transformers

from cofuse.checkpoint import Memory, Slice, TensorSpec, restacked
from cofuse.checkpoint.architecture import (
    at,
    changed,
    layer_counts,
    layer_of,
    main_stacks,
    stacks,
    vocabulary_axis,
    vocabulary_size,
    vocabulary_sizes,
)
from cofuse.errors import CheckpointError

TEXT = {"vocab_size": 99, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}  # fmt: skip
SEQ = {
    "vocab_size": 99, "d_model": 16, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "pad_token_id": 0,
}  # fmt: skip

# class, its config's settings, layers by stack
MODELS: list[tuple[str, str, dict[str, Any], dict[str, int]]] = [
    ("LlamaForCausalLM", "LlamaConfig", TEXT, {"model.layers": 3}),
    ("LlamaForSequenceClassification", "LlamaConfig", {**TEXT, "pad_token_id": 0}, {"model.layers": 3}),
    ("Gemma2ForCausalLM", "Gemma2Config", {**TEXT, "head_dim": 8, "num_key_value_heads": 1}, {"model.layers": 3}),
    (
        "MixtralForCausalLM",
        "MixtralConfig",
        {**TEXT, "num_local_experts": 4, "num_key_value_heads": 1},
        {"model.layers": 3},
    ),
    (
        "GPT2LMHeadModel",
        "GPT2Config",
        {"vocab_size": 99, "n_embd": 16, "n_layer": 3, "n_head": 2},
        {"transformer.h": 3},
    ),
    ("GPTNeoXForCausalLM", "GPTNeoXConfig", TEXT, {"gpt_neox.layers": 3}),
    (
        "BloomForCausalLM",
        "BloomConfig",
        {"vocab_size": 99, "hidden_size": 16, "n_layer": 3, "n_head": 2},
        {"transformer.h": 3},
    ),
    (
        "OPTForCausalLM",
        "OPTConfig",
        {**TEXT, "ffn_dim": 24, "word_embed_proj_dim": 16},
        {"model.decoder.layers": 3},
    ),
    (
        "MambaForCausalLM",
        "MambaConfig",
        {"vocab_size": 99, "hidden_size": 16, "num_hidden_layers": 3},
        {"backbone.layers": 3},
    ),
    ("BertForMaskedLM", "BertConfig", TEXT, {"bert.encoder.layer": 3}),
    ("BertModel", "BertConfig", TEXT, {"encoder.layer": 3}),
    ("RobertaForMaskedLM", "RobertaConfig", TEXT, {"roberta.encoder.layer": 3}),
    (
        "DistilBertForMaskedLM",
        "DistilBertConfig",
        {"vocab_size": 99, "dim": 16, "hidden_dim": 24, "n_layers": 3, "n_heads": 2},
        {"distilbert.transformer.layer": 3},
    ),
    ("ElectraForMaskedLM", "ElectraConfig", {**TEXT, "embedding_size": 8}, {"electra.encoder.layer": 3}),
    (
        "T5ForConditionalGeneration",
        "T5Config",
        {
            "vocab_size": 99,
            "d_model": 16,
            "d_ff": 24,
            "num_layers": 2,
            "num_decoder_layers": 3,
            "num_heads": 2,
            "d_kv": 8,
        },
        {"encoder.block": 2, "decoder.block": 3},
    ),
    ("BartForConditionalGeneration", "BartConfig", SEQ, {"model.encoder.layers": 2, "model.decoder.layers": 3}),
    (
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        {**SEQ, "num_mel_bins": 8},
        {"model.encoder.layers": 2, "model.decoder.layers": 3},
    ),
    ("ViTModel", "ViTConfig", VISION, {"layers": 2}),
    (
        "CLIPModel",
        "CLIPConfig",
        {"text_config": {**TEXT, "projection_dim": 8}, "vision_config": {**VISION, "projection_dim": 8}},
        {"text_model.encoder.layers": 3, "vision_model.encoder.layers": 2},
    ),
]


@pytest.fixture(scope="module", params=MODELS, ids=lambda m: str(m[0]))
def known(request: pytest.FixtureRequest) -> tuple[torch.nn.Module, dict[str, Any], dict[str, int]]:
    name, config_name, settings, expected = request.param
    config = getattr(transformers, config_name)(**settings)
    with torch.device("meta"):
        model = getattr(transformers, name)(config)
    model.tie_weights()
    return model, json.loads(config.to_json_string(use_diff=False)), expected


def test_stacks_have_the_layers_that_the_config_counts(known: Any) -> None:
    model, config, expected = known
    names = [n for n, _ in model.named_parameters(remove_duplicate=False)]
    found = stacks(names)
    if set(found) != set(expected):  # transformers has renamed a module: the numbers must agree all the same
        assert sorted(found.values()) == sorted(expected.values()), found
    for stack, layers in found.items():
        paths = layer_counts(stack, config)
        assert paths, (stack, config)
        assert at(config, paths[0]) == layers, (stack, paths)


def test_the_vocabulary_is_what_transformers_embeds_with(known: Any) -> None:
    model, config, _ = known
    tokens = set()
    text = getattr(model, "text_model", model)
    for module in (text.get_input_embeddings(), text.get_output_embeddings()):
        for parameter in (getattr(module, "weight", None), getattr(module, "bias", None)):
            if isinstance(parameter, torch.Tensor) and parameter.shape[0] == 99:
                tokens.add(id(parameter))
    for name, parameter in model.named_parameters(remove_duplicate=False):
        axis = vocabulary_axis(name, TensorSpec("F32", tuple(parameter.shape)), config)
        if id(parameter) in tokens:
            assert axis == 0, name
        elif axis is not None:
            # A bias tied to the head's, under a name of its own.
            assert parameter.shape[axis] == 99, name
    expected = None if type(model).__name__ == "ViTModel" else 99
    assert vocabulary_size(config) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight", ("down_blocks", 1)),
        ("up_blocks.0.resnets.2.conv1.weight", ("up_blocks", 0)),
        ("mid_block.attentions.0.proj_in.weight", None),
        ("transformer_blocks.7.attn.to_q.weight", ("transformer_blocks", 7)),
        ("single_transformer_blocks.3.attn.to_q.weight", ("single_transformer_blocks", 3)),
        ("model.diffusion_model.joint_blocks.4.x_block.attn.qkv.weight", ("model.diffusion_model.joint_blocks", 4)),
        ("model.layers.2.block_sparse_moe.experts.5.w1.weight", ("model.layers", 2)),
        ("experts.5.w1.weight", None),
        ("visual.transformer.resblocks.1.attn.in_proj_weight", ("visual.transformer.resblocks", 1)),
        ("decoder.block.0.layer.1.EncDecAttention.q.weight", ("decoder.block", 0)),
        ("layer1.0.conv.weight", None),
        ("model.embed_tokens.weight", None),
    ],
)
def test_layers_are_found_in_names(name: str, expected: tuple[str, int] | None) -> None:
    assert layer_of(name) == expected


def test_flux_counts_its_two_stacks() -> None:
    config = {"num_layers": 19, "num_single_layers": 38}
    assert at(config, layer_counts("transformer_blocks", config)[0]) == 19
    assert at(config, layer_counts("single_transformer_blocks", config)[0]) == 38
    assert layer_counts("down_blocks", {"layers_per_block": 2, "num_layers": 1}) == ()


def test_the_language_tower_is_the_main_one() -> None:
    names = ["model.visual.blocks.0.a", "model.language_model.layers.0.a", "model.language_model.layers.1.a"]
    assert main_stacks(names) == {"model.language_model.layers": 2}
    config = {"text_config": {"num_hidden_layers": 2, "vocab_size": 9}, "vision_config": {"depth": 1}, "vocab_size": 9}
    assert layer_counts("model.language_model.layers", config) == (("text_config", "num_hidden_layers"),)
    assert layer_counts("model.visual.blocks", config) == (("vision_config", "depth"),)
    assert vocabulary_sizes(config) == (("vocab_size",), ("text_config", "vocab_size"))
    assert changed(config, {("text_config", "vocab_size"): 8})["text_config"] == {
        "num_hidden_layers": 2,
        "vocab_size": 8,
    }
    assert config["text_config"] == {"num_hidden_layers": 2, "vocab_size": 9}


@pytest.mark.parametrize(
    ("name", "shape", "axis"),
    [
        ("lm_head.bias", (99,), 0),
        ("final_logits_bias", (1, 99), 1),
        ("cls.predictions.bias", (99,), 0),
        ("model.unheard_of.weight", (99, 4), 0),
        ("model.unheard_of.weight", (98, 4), None),
        ("model.layers.0.shared.weight", (99, 4), None),
        ("visual.embed_tokens.weight", (99, 4), None),
        ("score.weight", (2, 4), None),
        ("scalar", (), None),
    ],
)
def test_vocabularies_are_found_by_name_or_size(name: str, shape: tuple[int, ...], axis: int | None) -> None:
    assert vocabulary_axis(name, TensorSpec("F32", shape), {"vocab_size": 99}) == axis


def test_a_size_that_something_else_has_proves_nothing() -> None:
    spec = TensorSpec("F32", (99, 99))
    assert vocabulary_axis("odd.weight", spec, {"vocab_size": 99, "hidden_size": 99}) is None
    assert vocabulary_axis("lm_head.weight", spec, {"vocab_size": 99, "hidden_size": 99}) == 0


def test_the_language_tower_is_restacked_and_the_other_one_kept() -> None:
    held = {f"language_model.layers.{i}.w": torch.tensor([float(i)]) for i in range(3)}
    held |= {f"vision_tower.layers.{i}.w": torch.tensor([9.0 + i]) for i in range(2)}
    config = {"text_config": {"num_hidden_layers": 3, "layer_types": ["a", "b", "c"]}, "vision_config": {"depth": 2}}
    model = Memory(held, files={"config.json": json.dumps(config).encode()})
    view = restacked([Slice(model, 0, 1), Slice(model, 2, 3)])
    assert view.names() == (
        "vision_tower.layers.0.w", "vision_tower.layers.1.w", "language_model.layers.0.w", "language_model.layers.1.w"
    )  # fmt: skip
    assert view.read("language_model.layers.1.w").item() == 2
    assert view.config == {
        "text_config": {"num_hidden_layers": 2, "layer_types": ["a", "c"]},
        "vision_config": {"depth": 2},
    }


def test_an_encoder_and_a_decoder_are_not_restacked() -> None:
    model = Memory({"encoder.block.0.w": torch.ones(1), "decoder.block.0.w": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="more than one stack"):
        restacked([Slice(model, 0, 1)])
