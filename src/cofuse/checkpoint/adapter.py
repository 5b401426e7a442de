"""A PEFT adapter on its base, as the checkpoint that merging it would give; nothing is written out.

    LoRA     W + s B A                      s = alpha / r, or alpha / sqrt(r) for rsLoRA
    DoRA     m * (W + s B A) / ||W + s B A||, the norm over each output row
    IA3      l * W over output rows, and l * bias; over input columns for feed-forward modules

Prompt tuning and its kin change the input rather than the weights, so they are refused, as are initialisations that
rewrite the base (PiSSA, OLoRA, LoftQ, ...): such an adapter must be converted to plain LoRA by PEFT first.
Papers: LoRA 2106.09685, rsLoRA 2312.03732, DoRA 2402.09353, IA3 2205.05638.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import AdapterError
from .architecture import HEAD, VOCABULARY
from .body import best_prefix, with_prefix
from .checkpoint import BLOCK_BYTES, Checkpoint, TensorSpec, tensor_bytes
from .disk import SafetensorsFile
from .identity import content_id

if TYPE_CHECKING:
    import torch

# Metadata key under which an adapter's file pins the content id of the base it was trained on.
PIN = "cofuse.base"
_ROOT = "base_model.model."
_PARTS = (
    "lora_A.weight",
    "lora_B.weight",
    "lora_B.bias",
    "lora_embedding_A",
    "lora_embedding_B",
    "lora_magnitude_vector",
    "lora_magnitude_vector.weight",
    "ia3_l",
)
# What changes more than a module's weight by a product of two matrices.
_UNSUPPORTED = (
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "megatron_config",
)
# Initialisations of A and B that leave the base as it was; the others (PiSSA, OLoRA, LoftQ, CorDA, ...) rewrite it.
_STARTS = ("gaussian", "eva", "orthogonal", "mica")


@dataclass(frozen=True, slots=True)
class _Change:
    """How one tensor of the base is changed: names of the adapter's parts, and the scale."""

    parts: Mapping[str, str]
    scale: float


class Lora(NamedTuple):
    """What plain LoRA adds to a tensor: s B A, or its transpose where it is `turned`; `a` and `b` name its factors."""

    a: str
    b: str
    scale: float
    turned: bool


class Adapter(Checkpoint):
    """A base with a PEFT adapter merged in, computed as it is read.

    Args:
        folder: holds `adapter_config.json` and `adapter_model.safetensors`.
        base: the checkpoint it was trained on. When the adapter's file pins a content id, the base must have it.

    Raises:
        AdapterError: the adapter is of a kind that is refused, does not fit the base, or pins another base.
    """

    def __init__(self, folder: Path, base: Checkpoint) -> None:
        self.folder = folder
        self.base = base
        self.adapter_config = read_adapter_config(folder)
        self.weights = SafetensorsFile(_weights_file(folder))
        _check_kind(self.adapter_config, folder)
        pin = self.weights.metadata.get(PIN)
        if pin is not None and pin != content_id(base):
            raise AdapterError(
                "the adapter belongs to another base", where=folder, got=base.where, expected=f"content id {pin}"
            )
        self._changes: dict[str, _Change] = {}
        self._whole: dict[str, str] = {}  # tensors that the adapter replaces or adds
        self._match()

    def _match(self) -> None:
        modules: dict[str, dict[str, str]] = {}
        whole: dict[str, str] = {}
        for key in self.weights.names():
            stem = key.removeprefix(_ROOT)
            part = next((p for p in _PARTS if stem.endswith("." + p)), None)
            if part is None:
                # A module that PEFT has wrapped keeps its own tensors (an embedding, a trained bias) one level down.
                name = stem.replace(".modules_to_save.", ".").replace(".base_layer.", ".")
                if any(p.startswith(("lora_", "ia3_")) for p in name.split(".")):
                    raise AdapterError("the adapter has a part that is not known", where=self.folder, got=key)
                whole[name] = key
            else:
                modules.setdefault(stem[: -len(part) - 1], {})[part.removesuffix(".weight")] = key
        base = set(self.base.names()) | set(self.base.aliases)
        wanted = {f"{m}.weight" for m in modules} | set(whole)
        prefix = best_prefix(wanted, base)
        here = {with_prefix(name, prefix): name for name in sorted(base)}
        for module, parts in modules.items():
            target = here.get(f"{module}.weight")
            if target is None:
                raise AdapterError(
                    "the adapter changes a module that the base lacks",
                    where=self.folder,
                    got=module,
                    hint=f"is {self.base.where} the model it was trained on?",
                )
            target = self.base.resolve(target)
            if target in self._changes:
                raise AdapterError("two changes of one tied tensor", where=f"{self.folder}: {module}", got=target)
            bias = parts.pop("lora_B.bias", None)
            spot = here.get(f"{module}.bias")
            self._changes[target] = change = _Change(parts, self._scale(module, parts))
            self._check_shapes(target)
            if bias is not None:
                if spot is None or self.base.spec(spot).shape != self.weights.spec(bias).shape:
                    raise AdapterError("the adapter's bias has no place", where=self.folder, got=f"{module}.bias")
                self._changes[spot] = _Change({"bias": bias}, change.scale)
            if "ia3_l" in parts and spot is not None and not self._feed_forward(change):
                self._changes[spot] = _Change({"ia3_bias": parts["ia3_l"]}, 1.0)
        for name, key in whole.items():
            spot = here.get(name, name)
            if spot in self._changes and self.weights.spec(key) != self.base.spec(spot):
                raise AdapterError(
                    "the adapter changes a tensor that it also replaces by one of another shape or dtype",
                    where=f"{self.folder}: {name}",
                    got=self.weights.spec(key),
                    expected=self.base.spec(spot),
                )
            if spot not in base and self._is_tied_head(spot, key, whole, here):
                continue
            self._whole[spot] = key
        # A tied name is one of its own when the adapter replaces it or what it was tied to; a change in place ties on.
        replaced = self._whole.keys() - self._changes.keys()
        self._aliases = {
            alias: name
            for alias, name in self.base.aliases.items()
            if alias not in self._whole and name not in replaced
        }
        names = dict.fromkeys([*self.base.names(), *self._whole, *self.base.aliases])
        self._names = tuple(name for name in names if name not in self._aliases)

    def _is_tied_head(self, name: str, key: str, whole: Mapping[str, str], here: Mapping[str | None, str]) -> bool:
        """Whether a head that the base's file does not name is the embedding that the adapter replaces, once more.

        PEFT copies both when it keeps an embedding whole whose model ties them.
        """
        head = HEAD.search(re.sub(r"\.bias$", ".weight", name))
        if head is None or self.base.config.get("tie_word_embeddings") is False:
            return False
        same = (
            k
            for n, k in whole.items()
            if k != key and n in here and self.weights.spec(k) == self.weights.spec(key) and VOCABULARY.search(n)
        )
        blocks = list(self.weights.blocks(key))
        return any(
            all(self.weights.read_bytes(k, a, b) == self.weights.read_bytes(key, a, b) for a, b in blocks) for k in same
        )

    def _scale(self, module: str, parts: Mapping[str, str]) -> float:
        a = parts.get("lora_A") or parts.get("lora_embedding_A")
        if a is None:
            return 1.0
        rank = next(iter(self.weights.spec(a).shape), 0)
        if rank == 0:
            return 0.0  # the shapes are refused next
        alpha = _by_pattern(
            self.adapter_config, "alpha_pattern", module, self.adapter_config["lora_alpha"], self.folder
        )
        return alpha / math.sqrt(rank) if self.adapter_config.get("use_rslora") else alpha / rank

    def _check_shapes(self, target: str) -> None:
        change, shape = self._changes[target], self.base.spec(target).shape
        shapes = {part: self.weights.spec(key).shape for part, key in change.parts.items()}
        if "ia3_l" in shapes:
            if len(shape) != 2:
                # PEFT gives both kinds the same shape there, so that the file does not say which it is.
                raise AdapterError("IA3 on a convolution is refused", where=f"{self.folder}: {target}", got=shapes)
            rows_first = self._feed_forward(change) == self._fan_in_fan_out
            fits = len(shapes["ia3_l"]) == 2 and math.prod(shapes["ia3_l"]) == shape[0 if rows_first else 1]
        else:
            a = shapes.get("lora_A") or shapes.get("lora_embedding_A")
            b = shapes.get("lora_B") or shapes.get("lora_embedding_B")
            if a is None or b is None:
                raise AdapterError(
                    "half of a LoRA pair is missing", where=f"{self.folder}: {target}", got=sorted(shapes)
                )
            fits = len(a) > 1 and len(b) > 1 and len(shape) > 1 and a[0] == b[1] and a[0] > 0
            rows, columns = b[0], math.prod(a[1:])
            transposed = fits and self._transposed(change)
            fits = fits and math.prod(shape) == rows * columns and shape[0] == (columns if transposed else rows)
            magnitude = shapes.get("lora_magnitude_vector")
            fits = fits and (magnitude is None or math.prod(magnitude) == rows)
        if not fits:
            raise AdapterError(
                "the adapter does not fit the tensor",
                where=f"{self.folder}: {target}",
                got=shapes,
                expected=list(shape),
            )

    def _transposed(self, change: _Change) -> bool:
        # PEFT keeps an embedding's factors the other way round, and GPT-2's Conv1D its weight.
        return "lora_embedding_A" in change.parts or self._fan_in_fan_out

    def lora(self, name: str) -> Lora | None:
        """How a tensor is changed, where that is plain LoRA and nothing more."""
        change = self._changes.get(name)
        if change is None or not self._stands_on_the_base(name):
            return None
        for a, b in (("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B")):
            if change.parts.keys() == {a, b}:
                return Lora(change.parts[a], change.parts[b], change.scale, self._transposed(change))
        return None

    def _stands_on_the_base(self, name: str) -> bool:
        """Whether a changed tensor is the base's; PEFT keeps a copy of an embedding that it wraps."""
        key = self._whole.get(name)
        return key is None or all(
            self.weights.read_bytes(key, a, b) == self.base.read_bytes(name, a, b) for a, b in self.weights.blocks(key)
        )

    @property
    def _fan_in_fan_out(self) -> bool:
        return bool(self.adapter_config.get("fan_in_fan_out"))

    def _feed_forward(self, change: _Change) -> bool:
        # [1, in] scales what goes into a feed-forward module, [out, 1] what comes out of another.
        return self.weights.spec(change.parts["ia3_l"]).shape[:1] == (1,)

    def names(self) -> tuple[str, ...]:
        return self._names

    def spec(self, name: str) -> TensorSpec:
        name = self.resolve(name)
        return self.weights.spec(self._whole[name]) if name in self._whole else self.base.spec(name)

    def blocks(self, name: str, size: int = BLOCK_BYTES) -> Iterator[tuple[int, int]]:
        name = self.resolve(name)
        if name not in self._changes:
            yield from super().blocks(name, size)
            return
        rows, row_bytes, total = self._grouping(name)
        for first in range(0, total, rows):
            yield first * row_bytes, min(first + rows, total) * row_bytes

    def read_bytes(self, name: str, start: int = 0, stop: int | None = None) -> bytes | bytearray | memoryview:
        start, stop = self.check_range(name, start, stop)
        name = self.resolve(name)
        if name not in self._changes or start == stop:
            if name in self._whole:
                return self.weights.read_bytes(self._whole[name], start, stop)
            return self.base.read_bytes(name, start, stop)
        # Rows are always computed in the same groups, so that the bytes do not depend on the range asked for.
        rows, row_bytes, total = self._grouping(name)
        out = bytearray(stop - start)
        for group in range(start // row_bytes // rows, (stop - 1) // row_bytes // rows + 1):
            first, last = group * rows, min((group + 1) * rows, total)
            data = tensor_bytes(self._rows(name, first, last))
            a, b = max(start, first * row_bytes), min(stop, last * row_bytes)
            out[a - start : b - start] = data[a - first * row_bytes : b - first * row_bytes]
        return out

    def _grouping(self, name: str) -> tuple[int, int, int]:
        """Rows in a group, bytes of a row, rows in all."""
        spec = self.base.spec(name)
        row_bytes = TensorSpec(spec.dtype, spec.shape[1:]).nbytes
        whole = "lora_magnitude_vector" in self._changes[name].parts and self._transposed(self._changes[name])
        rows = spec.shape[0] if whole else max(1, BLOCK_BYTES // max(1, row_bytes))
        return rows, row_bytes, spec.shape[0]

    def _rows(self, name: str, first: int, last: int) -> torch.Tensor:
        import torch

        change = self._changes[name]
        whole = self._whole.get(name)
        rows = slice(first, last)
        stored = self.base.read(name, rows) if whole is None else self.weights.read(whole, rows)
        weight = stored.to(torch.float32)  # [rows, ...]

        def part(key: str) -> torch.Tensor:
            return self.weights.read(change.parts[key]).to(torch.float32)

        if "bias" in change.parts:
            return (weight + change.scale * part("bias")[first:last]).to(stored.dtype)
        if "ia3_bias" in change.parts:
            return (weight * part("ia3_bias").flatten()[first:last]).to(stored.dtype)
        if "ia3_l" in change.parts:
            scale = part("ia3_l").flatten()
            if self._feed_forward(change) != self._fan_in_fan_out:
                merged = weight * scale.reshape(1, -1, *(1,) * (weight.dim() - 2))
            else:
                merged = weight * scale[first:last].reshape(-1, *(1,) * (weight.dim() - 1))
            return merged.to(stored.dtype)
        embedding = "lora_embedding_A" in change.parts
        a = part("lora_embedding_A" if embedding else "lora_A").flatten(1)  # [rank, in]
        b = part("lora_embedding_B" if embedding else "lora_B").flatten(1)  # [out, rank]
        delta = a[:, first:last].T @ b.T if self._transposed(change) else b[first:last] @ a
        merged = weight + change.scale * delta.reshape(weight.shape)
        if "lora_magnitude_vector" in change.parts:
            magnitude = part("lora_magnitude_vector").flatten()
            if self._transposed(change):
                # the whole tensor is one group here: [in, out], one norm a column
                merged = merged * (magnitude / torch.linalg.vector_norm(merged, dim=0)).reshape(1, -1)
            else:
                norm = torch.linalg.vector_norm(merged.flatten(1), dim=1)
                merged = merged * (magnitude[first:last] / norm).reshape(-1, *(1,) * (weight.dim() - 1))
        return merged.to(stored.dtype)

    @property
    def files(self) -> Mapping[str, bytes]:
        return self.base.files

    @property
    def metadata(self) -> Mapping[str, str]:
        return self.base.metadata

    @property
    def where(self) -> str:
        return f"{self.folder} on {self.base.where}"


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """The adapter's configuration.

    Raises:
        AdapterError: it is missing or no JSON object.
    """
    try:
        config = json.loads((folder / "adapter_config.json").read_bytes())
    except OSError as error:
        raise AdapterError("cannot read adapter_config.json", where=folder, got=error.strerror) from None
    except (ValueError, RecursionError) as error:
        raise AdapterError("adapter_config.json is not JSON", where=folder, got=error) from None
    if not isinstance(config, dict):
        raise AdapterError("adapter_config.json is not an object", where=folder)
    return config


def _weights_file(folder: Path) -> Path:
    path = folder / "adapter_model.safetensors"
    if not path.is_file():
        raise AdapterError(
            "no adapter weights",
            where=folder,
            expected="adapter_model.safetensors",
            hint="pickled adapters are refused",
        )
    return path


def _check_kind(config: Mapping[str, Any], folder: Path) -> None:
    kind = str(config.get("peft_type", "")).upper()
    if kind not in ("LORA", "IA3"):
        raise AdapterError("this kind of adapter is refused", where=folder, got=kind or "none", expected="LORA or IA3")
    alpha = config.get("lora_alpha")
    if kind == "LORA" and not (isinstance(alpha, int | float) and math.isfinite(alpha)):
        raise AdapterError("lora_alpha is not a number", where=folder, got=alpha)
    start = config.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower() not in _STARTS:
        raise AdapterError(
            "the adapter's initialisation rewrote its base",
            where=folder,
            got=start,
            hint="let PEFT convert it: save_pretrained(..., path_initial_model_for_weight_conversion=...)",
        )
    for key in _UNSUPPORTED:
        if config.get(key):
            raise AdapterError("the adapter uses something that is refused", where=folder, got=key)


def _by_pattern(config: Mapping[str, Any], table: str, module: str, default: float, folder: Path) -> float:
    """PEFT's rank_pattern and alpha_pattern: the first key that matches the end of the module's name."""
    try:
        for pattern, value in (config.get(table) or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                return float(value)
    except (re.error, AttributeError, TypeError, ValueError, OverflowError) as error:
        raise AdapterError(f"{table} cannot be used", where=folder, got=error) from None
    return float(default)
