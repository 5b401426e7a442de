"""Parameter-efficient finetuning through the peft library: LoRA (arXiv 2106.09685) and IA3 (arXiv 2205.05638)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field
from torch import nn

from ..checkpoint import Checkpoint, Memory, build_header, write_synced
from ..checkpoint.checkpoint import tensor_bytes
from ..document import Document
from ..errors import TaskError
from .model import names_in, seeded

_NAME = "default"  # what peft calls an adapter that nobody named


class Adapting(Document):
    """What LoRA and IA3 share: the modules that are adapted, by the ends of their names; peft's choice when empty."""

    targets: tuple[str, ...] = ()

    def config(self) -> Any:
        """The configuration as peft has it."""
        raise NotImplementedError


class Lora(Adapting):
    """W + (alpha / rank) B A."""

    rank: int = Field(8, gt=0)
    alpha: float | None = Field(None, gt=0)  # the rank when not given: a scale of 1
    dropout: float = Field(0.0, ge=0, lt=1)

    def config(self) -> Any:
        from peft import LoraConfig

        alpha = self.rank if self.alpha is None else self.alpha
        return LoraConfig(
            r=self.rank, lora_alpha=alpha, lora_dropout=self.dropout, target_modules=list(self.targets) or None
        )

    def __str__(self) -> str:
        said = {"alpha": self.alpha, "dropout": self.dropout or None, "targets": " ".join(self.targets) or None}
        rest = [f"{name} {value}" for name, value in said.items() if value is not None]
        return ", ".join([f"LoRA of rank {self.rank}", *rest])


class Ia3(Adapting):
    """W scaled by a learned vector: of its outputs, or of its inputs where it is feed-forward."""

    feedforward: tuple[str, ...] = ()

    def config(self) -> Any:
        from peft import IA3Config

        # What is feed-forward is peft's to know only where the modules are its choice.
        known = list(self.feedforward) if self.targets else None
        return IA3Config(target_modules=list(self.targets) or None, feedforward_modules=known)

    def __str__(self) -> str:
        return f"IA3, targets {' '.join(self.targets)}" if self.targets else "IA3"


class Adapted:
    """A body with an adapter in it: the adapter trains, nothing else does.

    Args:
        body: changed in place, so one's own copy.
        base: what its weights come from.
        settings: `Lora` or `Ia3`.
        seed: of the adapter's start.

    Raises:
        TaskError: peft is not installed, knows no modules of this architecture, or refuses the settings.
    """

    def __init__(self, body: nn.Module, base: Checkpoint, settings: Adapting, seed: int) -> None:
        try:
            from peft import inject_adapter_in_model
        except ImportError as error:
            raise TaskError(
                "peft is not installed", got=f"no {error.name}", hint='pip install "cofuse[train]"'
            ) from None
        self.settings = settings
        end = ".weight"
        self._homes = {
            name.removesuffix(end): there.removesuffix(end)
            for name, there in names_in(body, {*base.names(), *base.aliases}).items()
            if name.endswith(end) and there.endswith(end)
        }
        self.config = settings.config()
        try:
            with seeded(seed):
                self.body = inject_adapter_in_model(self.config, body)
        except (ValueError, TypeError) as error:
            raise TaskError(
                "peft cannot adapt the model",
                where=base.where,
                got=(str(error).splitlines() or ["?"])[0][:200],
                hint="name the modules: targets=...",
            ) from None

    def tensors(self) -> dict[str, Any]:
        """The adapter's tensors as peft writes them, under the names that modules have in the checkpoint."""
        found = {}
        for name, parameter in self.body.named_parameters():
            stem, dot, _ = name.partition(f".{_NAME}")
            if dot and parameter.requires_grad:
                module, _, part = stem.rpartition(".")
                end = "" if part == "ia3_l" or part.startswith("lora_embedding") else ".weight"
                found[f"base_model.model.{self._homes.get(module, module)}.{part}{end}"] = parameter.detach()
        return found

    def save(self, folder: Path) -> None:
        """Write the adapter as peft does, into a folder that is there."""
        tensors = self.tensors()
        held = Memory(tensors)
        header = build_header({name: held.spec(name) for name in tensors}, {"format": "pt"})
        data = b"".join(tensor_bytes(tensors[name].cpu()) for name in header.entries)
        write_synced(folder / "adapter_model.safetensors", header.raw + data)
        said: Mapping[str, Any] = self.config.to_dict()
        text = json.dumps(said, indent=2, sort_keys=True, default=_listed)
        write_synced(folder / "adapter_config.json", text.encode() + b"\n")


def _listed(value: Any) -> Any:
    return sorted(value) if isinstance(value, set | frozenset) else str(value)
