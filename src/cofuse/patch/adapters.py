"""PEFT's LoRA adapters in and out: an adapter on its base becomes a patch of low rank, and a patch an adapter."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..checkpoint import Checkpoint, TensorSpec, build_header, building, write_synced
from ..checkpoint.adapter import Adapter
from ..checkpoint.architecture import HEAD
from ..checkpoint.floats import as_floats, as_stored
from ..checkpoint.modules import head_of, is_table, is_transposed, modules_of, short_names, task_of, tied_heads
from ..checkpoint.writer import refuse_to_replace
from ..errors import PatchError
from .applied import Applied
from .making import Pair, Way
from .patch import Patch
from .products import FACTORS, Product

ROOT = "base_model.model."  # PEFT's prefix of every key


@dataclass(frozen=True)
class FromAdapter(Way):
    """The factors of an adapter, bit for bit; what it changes otherwise (DoRA, IA3, whole modules) exactly."""

    finite: ClassVar[bool] = True

    adapter: Adapter

    def says(self) -> str:
        return "adapter"

    def product(self, pair: Pair, name: str) -> Product | None:
        lora = self.adapter.lora(name)
        if lora is None:
            return None
        weights = self.adapter.weights
        found = []
        for key in (lora.a, lora.b):
            spec = weights.spec(key)
            raw = np.frombuffer(weights.read_bytes(key), np.uint8)
            found.append(as_floats(raw, spec.dtype, np.float32).reshape(spec.shape[0], -1))
        a, b = found
        if lora.turned:
            a, b = np.ascontiguousarray(b.T), np.ascontiguousarray(a.T)
        dtypes = {weights.spec(key).dtype for key in (lora.a, lora.b)}
        code = dtypes.pop() if len(dtypes) == 1 else "F32"
        return Product(a, b, lora.scale, code if code in FACTORS else "F32")


def save_adapter(applied: Applied, folder: str | Path, address: str) -> int:
    """Write a patch as a PEFT adapter; gives the bytes of its weights.

    Products become LoRA pairs; the modules of other tensors that change are kept whole (`modules_to_save`).

    Args:
        applied: the patch on its base.
        folder: a new one, or one that holds an adapter and nothing else.
        address: of the base, for the adapter's configuration.

    Raises:
        PatchError: no tensor changes as a product, one that does is no module's weight, or a tensor goes.
        CheckpointError: it cannot be written; what was there is untouched.
    """
    patch, base, folder = applied.patch, applied.base, Path(folder)
    products = {n: c for n, c in patch.manifest.tensors.items() if c.how == "product"}
    whole = set(patch.manifest.tensors) - set(products)
    wrong = next((n for n in products if not n.endswith(".weight")), None) or next(iter(patch.manifest.removed), None)
    if wrong is not None or not products:
        raise PatchError(
            "the patch is no adapter",
            where=patch.path,
            got="no change of low rank" if wrong is None else wrong,
            expected="changes of low rank in modules' weights",
            hint="apply it, and extract a LoRA: cofuse extract-lora BASE TUNED OUT",
        )
    wrapped = {name.removesuffix(".weight") for name in products}
    biases = {name for name in whole if name.endswith(".bias") and name.removesuffix(".bias") in wrapped}
    modules = {n.rpartition(".")[0] for n in whole - biases}
    saved = {n: n for n in applied.names() if n.rpartition(".")[0] in modules}
    tied = {h: n for n in saved if n in base and is_table(n, base) for h in tied_heads(base, [n])}
    heads = {head_of(m, base) or m for m in (*modules, *(h.rpartition(".")[0] for h in tied))}
    parts = dict(_pairs(patch, base, products))
    for key, name in {**saved, **tied, **{f"{b.removesuffix('.bias')}.base_layer.bias": b for b in biases}}.items():
        parts[ROOT + key] = applied.spec(name), name
    config = _config(patch, base, products, address)
    config["modules_to_save"] = short_names(heads, modules_of(base)) or None
    config["bias"] = "lora_only" if biases else "none"
    if tied:
        config["ensure_weight_tying"] = True
    header = build_header({key: spec for key, (spec, _) in parts.items()}, {"format": "pt"})
    refuse_to_replace(folder)
    with building(folder) as temporary:
        with open(temporary / "adapter_model.safetensors", "xb") as file:
            file.write(header.raw)
            for key in header.entries:
                _, source = parts[key]
                blocks = applied.blocks(source) if isinstance(source, str) else ()
                file.writelines(applied.read_bytes(str(source), *block) for block in blocks)
                if not isinstance(source, str):
                    file.write(source)
        text = json.dumps(config, indent=2, sort_keys=True).encode() + b"\n"
        write_synced(temporary / "adapter_config.json", text)
    return header.data_start + header.data_bytes


def _pairs(
    patch: Patch, base: Checkpoint, products: Mapping[str, Any]
) -> Iterator[tuple[str, tuple[TensorSpec, str | memoryview]]]:
    for name in products:
        product, shape = patch.product(name), base.spec(name).shape
        table = is_table(name, base) and not HEAD.search(name)
        a, b = product.a, product.b
        if table or (len(shape) == 2 and is_transposed(base)):
            a, b = np.ascontiguousarray(b.T), np.ascontiguousarray(a.T)
        shape_a, shape_b = a.shape, b.shape
        if len(shape) > 2:  # a convolution: A convolves, B mixes channels
            shape_a, shape_b = (len(a), *shape[1:]), (*b.shape, *(1,) * (len(shape) - 2))
        kind, end = ("lora_embedding", "") if table else ("lora", ".weight")
        module = name.removesuffix(".weight")
        for letter, factor, stored in (("A", a, shape_a), ("B", b, shape_b)):
            spec = TensorSpec(product.dtype, stored)
            yield f"{ROOT}{module}.{kind}_{letter}{end}", (spec, as_stored(factor, product.dtype).data)


def _config(patch: Patch, base: Checkpoint, products: Mapping[str, Any], address: str) -> dict[str, Any]:
    """PEFT's adapter_config.json, but for what is kept whole."""
    modules = {name.removesuffix(".weight"): change for name, change in products.items()}
    rank = Counter(change.rank for change in modules.values()).most_common(1)[0][0]
    alpha = Counter(c.scale * c.rank for c in modules.values() if c.rank == rank).most_common(1)[0][0]
    name, at, revision = address.removeprefix("hf:").partition("@")
    hub = address.startswith("hf:")
    return {
        "alpha_pattern": {m: _number(c.scale * c.rank) for m, c in modules.items() if c.scale * c.rank != alpha},
        "base_model_name_or_path": name if hub else address,
        "fan_in_fan_out": is_transposed(base),
        "inference_mode": True,
        "lora_alpha": _number(alpha),
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": {m: c.rank for m, c in modules.items() if c.rank != rank},
        "revision": revision if hub and at else None,
        "target_modules": short_names(set(modules), modules_of(base)),
        "task_type": task_of(base),
        "use_rslora": False,
    }


def _number(value: float) -> int | float:
    return int(value) if float(value).is_integer() else value
