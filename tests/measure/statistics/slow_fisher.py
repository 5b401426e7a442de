"""The Fisher as it is defined, one example and one label at a time, and tiny models of many architectures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn

from cofuse.checkpoint import Checkpoint
from cofuse.measure.statistics.likelihood import draw_labels
from cofuse.measure.subject import Batch, Subject, module_subject
from cofuse.tasks import Examples

Tensors = Mapping[str, torch.Tensor]


def slow_fisher(subject: Subject, examples: Examples, kind: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """F = 1/N sum_n E_y (d log p(y | x_n) / d theta)^2: one backward pass for each example and label, in float64 sums."""
    sums = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in subject.parameters().items()}
    for batch in subject.batches(examples, 1):
        with torch.no_grad():
            logits = subject.logits(batch)
        if kind == "expected":
            labels = [torch.tensor([c]) for c in range(logits.shape[-1])]
            weights = logits.double().softmax(-1)[0].tolist()
        else:
            labels = [batch.labels if kind == "empirical" else draw_labels(logits, batch, seed)]
            weights = [1.0]
        for label, weight in zip(labels, weights, strict=True):
            subject.module.zero_grad()
            _log_p(subject.logits(batch), label, batch).backward()
            for name, parameter in subject.parameters().items():
                if parameter.grad is not None:
                    sums[name] += weight * parameter.grad.double() ** 2
    subject.module.zero_grad()
    return {name: total / len(examples) for name, total in sums.items()}


def _log_p(logits: torch.Tensor, labels: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Of one example, or of one sequence: the sum over the tokens that count."""
    # In float64 from the logits on: where p is nearly 1, 1 - p in float32 is rounding.
    at = logits.double().log_softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    return at.sum() if batch.mask is None else at[batch.mask].sum()


def assert_same(got: Checkpoint, expected: Tensors, relative: float = 1e-5) -> None:
    """Each tensor within a share of its norm; of a gradient that is zero but for rounding, of the largest tensor's."""
    assert set(got.names()) | set(got.aliases) == set(expected)
    largest = max(float(t.norm()) for t in expected.values())
    assert largest > 0
    for name, right in expected.items():
        off = float((got.read(name).double() - right).norm())
        assert off <= relative * float(right.norm()) + 1e-10 * largest, (name, off / float(right.norm()))


def _built(auto: str, kind: str, seed: int, **settings: Any) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = transformers.AutoConfig.for_model(kind, **settings)
        module: nn.Module = getattr(transformers, auto).from_config(config).eval()
        for name, parameter in module.named_parameters():
            # What starts at one or at zero is moved, so that no gradient vanishes and no scale hides. Not too far: where a
            # model is nearly sure of a class, the slow loop's own rounding is above what is promised.
            scale = "norm" in name.lower() and "bias" not in name
            nn.init.normal_(parameter, float(scale), 0.05 if name.startswith("classifier") else 0.2)
        for name, buffer in module.named_buffers():
            if "running" in name:
                buffer.copy_(torch.rand_like(buffer) + 0.5 if "var" in name else torch.randn_like(buffer) * 0.1)
    return module


def _text(random: np.random.Generator, count: int, time: int, vocabulary: int) -> dict[str, np.ndarray[Any, Any]]:
    lengths = random.integers(3, time + 1, count)
    mask = (np.arange(time) < lengths[:, None]).astype(np.int64)
    ids = np.where(mask, random.integers(4, vocabulary, (count, time)), 0)
    ids[:, 2] = ids[:, 0]  # a token that stands twice: its gradients meet before they are squared
    return {"input_ids": ids, "attention_mask": mask}


def text_classifier(kind: str, count: int = 7, classes: int = 3, **settings: Any) -> tuple[Subject, Examples]:
    module = _built("AutoModelForSequenceClassification", kind, 0, num_labels=classes, pad_token_id=0, **settings)
    random = np.random.default_rng(1)
    return module_subject(module), Examples(_text(random, count, 9, 40), random.integers(0, classes, count))


def language_model(kind: str, count: int = 5, **settings: Any) -> tuple[Subject, Examples]:
    module = _built("AutoModelForCausalLM", kind, 0, pad_token_id=0, **settings)
    inputs = _text(np.random.default_rng(2), count, 8, 40)
    labels = np.where(inputs["attention_mask"][:, 1:] > 0, inputs["input_ids"][:, 1:], -1)
    return module_subject(module, "tokens", logits=lambda out: out.logits[:, :-1]), Examples(inputs, labels)


def sequence_to_sequence(kind: str, count: int = 5, **settings: Any) -> tuple[Subject, Examples]:
    module = _built("AutoModelForSeq2SeqLM", kind, 0, pad_token_id=0, decoder_start_token_id=0, **settings)
    random = np.random.default_rng(3)
    inputs = _text(random, count, 8, 40)
    labels = random.integers(4, 40, (count, 5))
    inputs["decoder_input_ids"] = np.concatenate([np.zeros((count, 1), np.int64), labels[:, :-1]], 1)
    labels[1, 3:] = -1
    return module_subject(module, "tokens"), Examples(inputs, labels)


def image_classifier(kind: str, count: int = 5, size: int = 8, **settings: Any) -> tuple[Subject, Examples]:
    module = _built("AutoModelForImageClassification", kind, 0, num_labels=3, num_channels=3, **settings)
    random = np.random.default_rng(4)
    pixels = random.normal(size=(count, 3, size, size)).astype(np.float32)
    return module_subject(module), Examples({"pixel_values": pixels}, random.integers(0, 3, count))


_SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 20,
    "vocab_size": 40,
}
_GPT2: dict[str, Any] = {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16}
_T5: dict[str, Any] = {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 20, "num_layers": 2, "num_heads": 2}

MODELS: dict[str, Callable[[], tuple[Subject, Examples]]] = {
    "bert": lambda: text_classifier("bert", max_position_embeddings=16, **_SMALL),
    "roberta": lambda: text_classifier("roberta", max_position_embeddings=16, **_SMALL),
    "albert": lambda: text_classifier("albert", max_position_embeddings=16, embedding_size=8, **_SMALL),
    "distilbert": lambda: text_classifier(
        "distilbert", vocab_size=40, dim=16, n_layers=2, n_heads=2, hidden_dim=20, max_position_embeddings=16
    ),
    "modernbert": lambda: text_classifier("modernbert", **_SMALL),
    "llama": lambda: language_model("llama", num_key_value_heads=2, tie_word_embeddings=True, **_SMALL),
    "qwen2": lambda: language_model("qwen2", num_key_value_heads=2, tie_word_embeddings=False, **_SMALL),
    "qwen3": lambda: language_model("qwen3", num_key_value_heads=2, head_dim=4, **_SMALL),
    "gemma2": lambda: language_model("gemma2", num_key_value_heads=2, head_dim=4, **_SMALL),
    "gpt2": lambda: language_model("gpt2", **_GPT2),
    "gpt_neox": lambda: language_model("gpt_neox", max_position_embeddings=16, **_SMALL),
    "opt": lambda: language_model(
        "opt",
        ffn_dim=20,
        word_embed_proj_dim=16,
        max_position_embeddings=16,
        **{k: v for k, v in _SMALL.items() if k != "intermediate_size"},
    ),
    "t5": lambda: sequence_to_sequence("t5", **_T5),
    "switch_transformers": lambda: sequence_to_sequence(
        "switch_transformers",
        num_experts=3,
        expert_capacity=64,
        num_sparse_encoder_layers=1,
        num_sparse_decoder_layers=1,
        num_decoder_layers=2,
        **_T5,
    ),
    "bart": lambda: sequence_to_sequence(
        "bart",
        vocab_size=40,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=20,
        decoder_ffn_dim=20,
        max_position_embeddings=16,
    ),
    "vit": lambda: image_classifier(
        "vit", image_size=8, patch_size=4, **{k: v for k, v in _SMALL.items() if k != "vocab_size"}
    ),
    "resnet": lambda: image_classifier(
        "resnet", size=32, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], layer_type="basic"
    ),
    "resnet_bottleneck": lambda: image_classifier(
        "resnet", size=32, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="bottleneck"
    ),
    "convnext": lambda: image_classifier("convnext", size=32, hidden_sizes=[4, 8], depths=[1, 1], num_stages=2),
}
