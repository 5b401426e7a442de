"""A finetune as a LoRA: what was tuned, minus its base, as products of two thin matrices, with the error that leaves.

    tuned - base ~ s B A        s = alpha / rank; B [out, rank], A [rank, in]: the truncated SVD of the difference

Written as a PEFT adapter, which `cofuse.open` opens on its base. What no product can hold is kept whole, as PEFT's
`modules_to_save` (norms, embeddings, heads) and trained biases. As mergekit's `mergekit-extract-lora`, except that what
did not change is left out, that biases are kept where PEFT reads them, and that the error is known.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ..checkpoint import Checkpoint, TensorSpec, build_header, building, write_synced
from ..checkpoint.architecture import HEAD, vocabulary_axis
from ..checkpoint.floats import FLOATS, as_floats, as_stored
from ..checkpoint.lowrank import Matrix, leading, within
from ..checkpoint.writer import _refuse_to_replace as refuse_to_replace
from ..errors import FuseError
from ..progress import SILENT, Progress
from .card import CARD, lora_card
from .record import RECORD, versions

Array: TypeAlias = npt.NDArray[np.float32]
Part: TypeAlias = tuple[
    TensorSpec, "Checkpoint | bytes | memoryview", str
]  # what is written: from where, under which name

ROOT = "base_model.model."  # PEFT's prefix of every key
# Tables with a row for each token or position; no module's input is multiplied by them.
_EMBEDDING = re.compile(
    r"(?:^|\.)(?:embed_tokens|embed_positions|embed_in"
    r"|(?:word|token|tok|text|position|positional|token_type|patch_position)_embeddings?|embeddings?|wte|wpe|shared|relative_attention_bias)$"
)
FACTORS = ("F32", "F16", "BF16")
RANK = 16  # when nobody says
# Models whose linear layers are Conv1D, with the weight the other way round.
_TRANSPOSED = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "gptsan-japanese"})
_TASKS = (
    ("ForCausalLM", "CAUSAL_LM"),
    ("LMHeadModel", "CAUSAL_LM"),
    ("ForConditionalGeneration", "SEQ_2_SEQ_LM"),
    ("ForSequenceClassification", "SEQ_CLS"),
    ("ForTokenClassification", "TOKEN_CLS"),
    ("ForQuestionAnswering", "QUESTION_ANS"),
)
# What PEFT keeps whole of its own accord for a task; the file must have it.
_HEADS = {"SEQ_CLS": ("classifier", "score"), "TOKEN_CLS": ("classifier", "score"), "QUESTION_ANS": ("qa_outputs",)}


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """What to extract, and how.

    Attributes:
        rank: of each product, at most; with `max_error` the largest allowed, else 16 when None.
        max_error: choose each tensor's rank as the least that leaves at most this relative Frobenius error.
        alpha: LoRA's; the rank when None, so that products count as they are.
        modules: only these, by their full names or the last parts (`q_proj`); all when empty.
        include: only modules whose names these fit: a glob, or a part of the name.
        exclude: not these.
        save: modules to be kept whole.
        embeddings: embeddings and heads too as products, not whole.
        distribute_scale: the singular values' roots on both factors; all on A when False.
        epsilon: drop singular values up to this.
        skip: leave out changes that a LoRA cannot hold (and norms, embeddings and such) instead of keeping them whole.
        dtype: of the factors: a safetensors code; the tuned tensor's when None.
    """

    rank: int | None = None
    max_error: float | None = None
    alpha: float | None = None
    modules: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    save: tuple[str, ...] = ()
    embeddings: bool = False
    distribute_scale: bool = True
    epsilon: float = 0.0
    skip: bool = False
    dtype: str | None = None

    def __post_init__(self) -> None:
        if self.rank is not None and self.rank < 1:
            raise FuseError("a rank is at least 1", got=self.rank)
        if self.max_error is not None and not 0 <= self.max_error < 1:
            raise FuseError("an error is a share of the change", got=self.max_error, expected="0 to 1")
        if self.alpha is not None and not (math.isfinite(self.alpha) and self.alpha > 0):
            raise FuseError("alpha is above 0", got=self.alpha)
        if self.alpha is not None and self.rank is None and self.max_error is not None:
            raise FuseError("alpha means something only with a rank", got=self.alpha, hint="give a rank too")
        if self.dtype is not None and self.dtype not in FACTORS:
            raise FuseError("a dtype of factors", got=self.dtype, expected=", ".join(FACTORS))

    def wants(self, module: str) -> bool:
        """Whether a module is to be extracted at all."""
        if self.modules and not _named(module, self.modules):
            return False
        if self.include and not any(_fits(module, pattern) for pattern in self.include):
            return False
        return not any(_fits(module, pattern) for pattern in self.exclude)


@dataclass(frozen=True, slots=True)
class Product:
    """One weight's change as a product.

    Attributes:
        a, b: the stored factors' specs and bytes.
        rank: of the product.
        error: ||change - s B A||_F / ||change||_F, with the factors as stored.
        embedding: kept the other way round, as PEFT keeps an embedding's factors.
    """

    a: tuple[TensorSpec, bytes]
    b: tuple[TensorSpec, bytes]
    rank: int
    error: float
    embedding: bool


@dataclass(slots=True)
class Extracted:
    """A LoRA, not written yet.

    Attributes:
        products: by module.
        whole: tensors kept whole, by the base's (or the tuned model's) names; none of them of a module with a product.
        biases: changed biases of modules with a product, or without any other change.
        tied: tensors of a head that the base's file does not name, each with the tensor above that it is tied to.
        left: tensors that changed and are left out, with the norms of their changes.
        error: what the whole adapter leaves of the whole change: relative Frobenius norm over all tensors.
    """

    tuned: Checkpoint
    base: Checkpoint
    settings: LoraSettings
    products: dict[str, Product] = field(default_factory=dict)
    whole: dict[str, TensorSpec] = field(default_factory=dict)
    biases: dict[str, TensorSpec] = field(default_factory=dict)
    left: dict[str, float] = field(default_factory=dict)
    tied: dict[str, str] = field(default_factory=dict)
    unchanged: set[str] = field(default_factory=set)
    error: float = 0.0

    @property
    def scale(self) -> float:
        """LoRA's s: alpha over the rank asked for, 1 without an alpha."""
        return _scale(self.settings)

    def config(self, base_address: str) -> dict[str, Any]:
        """PEFT's adapter_config.json."""
        ranks = {module: product.rank for module, product in self.products.items()}
        rank = max(ranks.values())
        other = {module: r for module, r in sorted(ranks.items()) if r != rank}
        name, at, revision = base_address.removeprefix("hf:").partition("@")
        hub = base_address.startswith("hf:")
        everything = _modules(self.base)
        wrapped = {name.rpartition(".")[0] for name in self.biases} & set(self.products)
        bias = "none" if not self.biases else "lora_only" if len(wrapped) == len(self.biases) else "all"
        config = {
            "alpha_pattern": {module: _number(self.scale * r) for module, r in other.items()},
            "base_model_name_or_path": name if hub else base_address,
            "bias": bias,
            "fan_in_fan_out": _transposed(self.base),
            "inference_mode": True,
            "lora_alpha": _number(self.scale * rank),
            "lora_dropout": 0.0,
            "modules_to_save": _short(self._kept_modules(), everything) or None,
            "peft_type": "LORA",
            "r": rank,
            "rank_pattern": other,
            "revision": revision if hub and at else None,
            "target_modules": _short(set(self.products), everything),
            "task_type": _task(self.base),
            "use_rslora": False,
        }
        if self.tied:
            config["ensure_weight_tying"] = True
        return config

    def _kept_modules(self) -> set[str]:
        """Modules that PEFT must copy; of a head with modules inside, the head."""
        modules = {name.rpartition(".")[0] for name in (*self.whole, *self.tied)}
        return {head if (head := _head(module, self.base)) else module for module in modules}

    def record(self, base: Mapping[str, Any], tuned: Mapping[str, Any]) -> bytes:
        """The adapter's record: what it was made of, and the error of each product."""
        settings = {
            name: list(value) if isinstance(value, tuple) else value
            for name in LoraSettings.__slots__
            if (value := getattr(self.settings, name)) not in (None, (), False)
        }
        record = {
            "adapter": 1,
            "base": dict(base),
            "error": _rounded(self.error),
            "left": {name: _rounded(norm) for name, norm in self.left.items()},
            "products": {m: {"error": _rounded(p.error), "rank": p.rank} for m, p in self.products.items()},
            "settings": {**settings, "distribute_scale": self.settings.distribute_scale},
            "tuned": dict(tuned),
            "versions": versions(),
            "whole": sorted([*self.whole, *self.biases]),
        }
        return json.dumps(record, sort_keys=True, indent=2).encode() + b"\n"

    def save(
        self, folder: Path, *, base: Mapping[str, Any], tuned: Mapping[str, Any], hub: Mapping[str, str] | None = None
    ) -> int:
        """Write the adapter; gives the bytes of its weights.

        Args:
            folder: a new one, or one that holds an adapter and nothing else.
            base: what the record says of the base: `address`, and `content` where it is known.
            tuned: the same of the tuned model.
            hub: Hugging Face ids by address, for the card.

        Raises:
            CheckpointError: it cannot be written; what was there is untouched.
        """
        parts = dict(self._parts())
        header = build_header({name: part[0] for name, part in parts.items()}, {"format": "pt"})
        refuse_to_replace(folder)
        address = str(base["address"])
        with building(folder) as temporary:
            with open(temporary / "adapter_model.safetensors", "xb") as file:
                file.write(header.raw)
                for name in header.entries:
                    _, source, stored = parts[name]
                    file.write(source.read_bytes(stored) if isinstance(source, Checkpoint) else source)
                file.flush()
                os.fsync(file.fileno())
            config = json.dumps(self.config(address), indent=2, sort_keys=True).encode() + b"\n"
            write_synced(temporary / "adapter_config.json", config)
            write_synced(temporary / RECORD, self.record(base, tuned))
            write_synced(temporary / CARD, lora_card(self, address, str(tuned["address"]), hub or {}))
        return header.data_start + header.data_bytes

    def _parts(self) -> Iterator[tuple[str, Part]]:
        for module, product in self.products.items():
            kind, end = ("lora_embedding", "") if product.embedding else ("lora", ".weight")
            yield f"{ROOT}{module}.{kind}_A{end}", (*product.a, "")
            yield f"{ROOT}{module}.{kind}_B{end}", (*product.b, "")
        for name, spec in self.whole.items():
            yield ROOT + name, (spec, self.tuned, name)
        for name, kept in self.tied.items():
            # PEFT copies what it keeps whole: without one of its own the head would stay the old embedding.
            yield ROOT + name, (self.tuned.spec(kept), self.tuned, kept)
        for name, spec in self.biases.items():
            module = name.rpartition(".")[0]
            inner = f"{module}.base_layer.bias" if module in self.products else name
            yield ROOT + inner, (spec, self.tuned, name)


def extract_lora(
    tuned: Checkpoint, base: Checkpoint, settings: LoraSettings | None = None, progress: Progress = SILENT
) -> Extracted:
    """Find the LoRA that is nearest to what was tuned.

    Args:
        tuned: the finetune, with the base's names.
        base: what it was tuned from.
        settings: see `LoraSettings`.
        progress: told of every tensor.

    Raises:
        FuseError: names or shapes do not fit, a change cannot be held, a value is not finite, or nothing changed.

    Memory is about six times the largest tensor in float32, and the adapter.

    >>> import torch
    >>> from cofuse.checkpoint import Memory
    >>> base = Memory({"up.weight": torch.zeros(4, 4)})
    >>> tuned = Memory({"up.weight": torch.ones(4, 4)})
    >>> found = extract_lora(tuned, base, LoraSettings(rank=1))
    >>> found.products["up"].rank, found.error < 1e-6
    (1, True)
    """
    settings = settings or LoraSettings()
    found = Extracted(tuned, base, settings)
    missing = [n for n in base.names() if n not in tuned]
    if missing:
        raise FuseError(
            "the tuned model lacks a tensor of the base",
            where=tuned.where,
            got=missing[0],
            hint="take its body first: cofuse body TUNED OUT --like BASE",
        )
    modules: defaultdict[str, list[str]] = defaultdict(list)
    for name in (*base.names(), *(n for n in tuned.names() if n not in base)):
        module, _, kind = name.rpartition(".")
        modules[module if kind in ("weight", "bias") else name].append(name)
    bar = progress.bar("extracting", sum(base.spec(n).nbytes for n in base.names()), "B")
    squares = _Squares()
    for module, names in modules.items():
        _extract_module(found, module, names, squares)
        bar.advance(sum(base.spec(n).nbytes for n in names if n in base))
    if not found.products:
        raise FuseError(
            "no weight changed that a LoRA can hold",
            where=tuned.where,
            got=f"{len(found.unchanged)} tensors unchanged, {len(found.whole) + len(found.biases)} to keep whole",
            hint="are they different models? PEFT wants at least one product",
        )
    found.tied.update(_tied_heads(base, [n for n in found.whole if n in base and _is_table(n, base)]))
    for head in tuple(found.tied):
        bias = head.replace(".decoder.weight", ".bias")
        if bias != head and bias in base and not any(HEAD.search(name) for name in base.names()):
            # A masked language model's head has one bias under two names, and PEFT wants both.
            found.tied[head.replace(".weight", ".bias")] = bias
            found.biases[bias] = tuned.spec(bias)
    found.error = math.sqrt(squares.left / squares.changed) if squares.changed else 0.0
    return found


@dataclass(slots=True)
class _Squares:
    changed: float = 0.0
    left: float = 0.0


def _extract_module(found: Extracted, module: str, names: Sequence[str], squares: _Squares) -> None:
    tuned, base, settings = found.tuned, found.base, found.settings
    changed: dict[str, float] = {}  # name -> squared norm of its change
    new = [n for n in names if n not in base]
    other_shape = [n for n in names if n in base and tuned.spec(n).shape != base.spec(n).shape]
    change: Array | None = None
    for name in names:
        if name in new or name in other_shape:
            continue
        delta = _delta(tuned, base, name)
        if delta is None:
            found.unchanged.add(name)
            continue
        changed[name] = float(np.square(delta, dtype=np.float64).sum())
        if name == f"{module}.weight":
            change = delta
    head = _head(module, base)
    if not changed and not new and not other_shape:
        if head:
            found.whole.update({n: tuned.spec(n) for n in names})
        return
    squares.changed += math.fsum(changed.values())
    weight = f"{module}.weight"
    if not head and not settings.wants(module):
        _leave(found, changed, squares)
        return
    is_module = set(names) <= {weight, f"{module}.bias"}
    user = _named(module, settings.save)
    table = is_module and weight in base and (_is_table(weight, base) or HEAD.search(weight) is not None)
    tied = table and bool(_tied_heads(base, [weight]))  # a product would change the embedding and not the head
    whole = user or bool(head) or bool(new) or bool(other_shape) or tied or (table and not settings.embeddings)
    product = change is not None and not whole and change.ndim >= 2 and not (change.ndim > 2 and change.shape[1] == 1)
    if product:
        assert change is not None
        made = _product(change, weight, found)
        found.products[module] = made
        squares.left += changed[weight] * made.error**2
    elif other_shape and not _is_table(other_shape[0], base) and not user:
        raise FuseError(
            "a tensor has another shape than the base's",
            where=f"{tuned.where}: {other_shape[0]}",
            got=list(tuned.spec(other_shape[0]).shape),
            expected=list(base.spec(other_shape[0]).shape),
        )
    elif not is_module or any(tuned.spec(n).dtype not in FLOATS for n in changed):
        if not settings.skip:
            raise FuseError(
                "a LoRA cannot hold a change of what is no module's weight or bias",
                where=f"{tuned.where}: {names[0]}",
                hint="--skip-undecomposable leaves it out",
            )
        _leave(found, changed, squares)
        return
    elif set(changed) == {f"{module}.bias"} and not whole:
        pass  # only the bias: no need to keep the weight
    elif settings.skip and not user and not new and not head:
        _leave(found, changed, squares)
        return
    else:
        found.whole.update({n: tuned.spec(n) for n in names if n in tuned})
        return
    bias = f"{module}.bias"
    if bias in changed:
        found.biases[bias] = tuned.spec(bias)


def _leave(found: Extracted, changed: Mapping[str, float], squares: _Squares) -> None:
    for name, square in changed.items():
        found.left[name] = math.sqrt(square)
        squares.left += square


def _product(change: Array, weight: str, found: Extracted) -> Product:
    settings, scale = found.settings, found.scale
    embedding = _is_table(weight, found.base)
    turned = embedding or (change.ndim == 2 and _transposed(found.base))
    matrix: Matrix = np.ascontiguousarray(change.T) if turned else change.reshape(len(change), -1)
    most = settings.rank if settings.rank is not None else RANK if settings.max_error is None else min(matrix.shape)
    code = settings.dtype or found.tuned.spec(weight).dtype
    if code not in FACTORS:
        code = "F32"
    limit = settings.max_error
    part = leading(matrix, most) if limit is None else within(matrix, limit, most)
    if settings.epsilon > 0:
        part = part.first(max(1, int((part.s > settings.epsilon).sum())))
    for _ in range(4):
        root = np.sqrt(part.s / np.float32(scale))[:, None]
        a = (root if settings.distribute_scale else root * root) * part.vt
        b = part.u * root.T if settings.distribute_scale else part.u
        stored_a, stored_b = as_stored(a, code), as_stored(b, code)
        a = as_floats(stored_a, code, np.float32).reshape(a.shape)
        b = as_floats(stored_b, code, np.float32).reshape(b.shape)
        # What is left, with the factors as they are stored.
        error = math.sqrt(_square(matrix - np.float32(scale) * (b @ a)) / _square(change))
        if limit is None or error <= limit or part.rank >= min(most, *matrix.shape) or settings.epsilon > 0:
            break
        part = leading(matrix, min(most, part.rank + max(1, part.rank // 8)))  # rounding took the rest
    shape_a: tuple[int, ...] = a.shape
    shape_b: tuple[int, ...] = b.shape
    if change.ndim > 2:  # a convolution: A convolves, B mixes channels
        shape_a = (part.rank, *change.shape[1:])
        shape_b = (b.shape[0], part.rank, *(1,) * (change.ndim - 2))
    return Product(
        (TensorSpec(code, shape_a), stored_a.tobytes()),
        (TensorSpec(code, shape_b), stored_b.tobytes()),
        part.rank,
        error,
        embedding,
    )


def _delta(tuned: Checkpoint, base: Checkpoint, name: str) -> Array | None:
    """What changed of a tensor, in float32; None when nothing did."""
    ours, theirs = tuned.spec(name), base.spec(name)
    after, before = tuned.read_bytes(name), base.read_bytes(name)
    if ours.dtype == theirs.dtype and after == before:
        return None
    if ours.dtype not in FLOATS or theirs.dtype not in FLOATS:
        if ours.dtype in FLOATS or theirs.dtype in FLOATS:
            raise FuseError(
                "a tensor has another kind of dtype",
                where=f"{tuned.where}: {name}",
                got=ours.dtype,
                expected=theirs.dtype,
            )
        return np.ones(1, np.float32)
    delta: Array = _floats(after, ours, tuned, name)
    delta -= _floats(before, theirs, base, name)
    return delta if delta.any() else None


def _floats(data: bytes | bytearray | memoryview, spec: TensorSpec, checkpoint: Checkpoint, name: str) -> Array:
    values: Array = as_floats(np.frombuffer(data, np.uint8), spec.dtype, np.float32).astype(np.float32, copy=False)
    if not np.isfinite(values).all():
        raise FuseError("a value is not finite", where=f"{checkpoint.where}: {name}")
    return values.reshape(spec.shape)


def _square(values: Array) -> float:
    return float(np.square(values, dtype=np.float64).sum())


def _scale(settings: LoraSettings) -> float:
    if settings.alpha is None:
        return 1.0
    return settings.alpha / (settings.rank or RANK)


def _modules(checkpoint: Checkpoint) -> set[str]:
    return {name.rpartition(".")[0] for name in (*checkpoint.names(), *checkpoint.aliases) if name.endswith(".weight")}


def _short(chosen: set[str], everything: set[str]) -> list[str]:
    """Names for PEFT: the last part where all modules that end in it are chosen, else the whole name."""
    last: defaultdict[str, set[str]] = defaultdict(set)
    for module in everything | chosen:
        last[module.rpartition(".")[2]].add(module)
    shown = set()
    for module in chosen:
        end = module.rpartition(".")[2]
        # A list's element is called by its number, which many modules are.
        shown.add(end if last[end] <= chosen and not end.isdigit() else module)
    return sorted(shown)


def _named(module: str, names: Sequence[str]) -> bool:
    return any(module == name or module.endswith("." + name) for name in names)


def _fits(module: str, pattern: str) -> bool:
    return fnmatchcase(module, pattern) if any(c in pattern for c in "*?[") else pattern in module


def _is_table(name: str, base: Checkpoint) -> bool:
    """Whether a tensor is an embedding's."""
    spec = base.spec(name) if name in base else None
    if spec is None or len(spec.shape) != 2 or not name.endswith(".weight") or HEAD.search(name):
        return False
    return bool(_EMBEDDING.search(name.removesuffix(".weight"))) or vocabulary_axis(name, spec, base.config) == 0


def _tied_heads(base: Checkpoint, tables: Sequence[str]) -> dict[str, str]:
    """Heads that share the weight of one of these embeddings, with its name."""
    found = {alias: kept for alias, kept in base.aliases.items() if kept in tables and HEAD.search(alias)}
    words = [n for n in tables if vocabulary_axis(n, base.spec(n), base.config) == 0]
    if found or len(words) != 1 or base.config.get("tie_word_embeddings", True) is False:
        return found
    # The files of a tied model need not name the head; its class says whether there is one.
    names = base.names()
    end = str((base.config.get("architectures") or [""])[0])
    if any(HEAD.search(name) for name in names):
        return {}
    if end.endswith("ForMaskedLM"):
        bert = any(name.startswith("cls.predictions.") for name in names)
        return {"cls.predictions.decoder.weight" if bert else "lm_head.decoder.weight": words[0]}
    return {"lm_head.weight": words[0]} if _task(base) in ("CAUSAL_LM", "SEQ_2_SEQ_LM") else {}


def _transposed(base: Checkpoint) -> bool:
    return base.config.get("model_type") in _TRANSPOSED


def _task(base: Checkpoint) -> str | None:
    architectures = base.config.get("architectures")
    name = str(architectures[0]) if isinstance(architectures, list) and architectures else ""
    if not name:
        return None
    return next((task for end, task in _TASKS if name.endswith(end)), "FEATURE_EXTRACTION")


def _head(module: str, base: Checkpoint) -> str | None:
    """The classification head that a module is, or is in; None for any other."""
    parts = module.split(".")
    for i, part in enumerate(parts):
        if part in _HEADS.get(_task(base) or "", ()):
            return ".".join(parts[: i + 1])
    return None


def _number(value: float) -> int | float:
    return int(value) if float(value).is_integer() else value


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
