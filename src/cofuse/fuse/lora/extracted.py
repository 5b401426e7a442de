"""A LoRA that was found, and how it is written as a PEFT adapter."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from ...checkpoint import Checkpoint, TensorSpec, build_header, building, write_synced
from ...checkpoint.modules import head_of, is_transposed, modules_of, short_names, task_of
from ...checkpoint.writer import refuse_to_replace
from ..card import CARD, lora_card
from ..record import RECORD, versions
from .settings import LoraSettings, scale_of

Part: TypeAlias = tuple[
    TensorSpec, "Checkpoint | bytes | memoryview", str
]  # what is written: from where, under which name
ROOT = "base_model.model."  # PEFT's prefix of every key


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
        return scale_of(self.settings)

    def config(self, base_address: str) -> dict[str, Any]:
        """PEFT's adapter_config.json."""
        ranks = {module: product.rank for module, product in self.products.items()}
        rank = max(ranks.values())
        other = {module: r for module, r in sorted(ranks.items()) if r != rank}
        name, at, revision = base_address.removeprefix("hf:").partition("@")
        hub = base_address.startswith("hf:")
        everything = modules_of(self.base)
        wrapped = {name.rpartition(".")[0] for name in self.biases} & set(self.products)
        bias = "none" if not self.biases else "lora_only" if len(wrapped) == len(self.biases) else "all"
        config = {
            "alpha_pattern": {module: _number(self.scale * r) for module, r in other.items()},
            "base_model_name_or_path": name if hub else base_address,
            "bias": bias,
            "fan_in_fan_out": is_transposed(self.base),
            "inference_mode": True,
            "lora_alpha": _number(self.scale * rank),
            "lora_dropout": 0.0,
            "modules_to_save": short_names(self._kept_modules(), everything) or None,
            "peft_type": "LORA",
            "r": rank,
            "rank_pattern": other,
            "revision": revision if hub and at else None,
            "target_modules": short_names(set(self.products), everything),
            "task_type": task_of(self.base),
            "use_rslora": False,
        }
        if self.tied:
            config["ensure_weight_tying"] = True
        return config

    def _kept_modules(self) -> set[str]:
        """Modules that PEFT must copy; of a head with modules inside, the head."""
        modules = {name.rpartition(".")[0] for name in (*self.whole, *self.tied)}
        return {head if (head := head_of(module, self.base)) else module for module in modules}

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


def _number(value: float) -> int | float:
    return int(value) if float(value).is_integer() else value


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
