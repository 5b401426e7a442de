"""Contributing from a training script: three lines.

from cofuse.hub.callback import Contribute
trainer.add_callback(Contribute("https://hub.example.org/org/model", title="Reviews", data="public reviews"))
trainer.train()
"""

from __future__ import annotations

import logging
import math
import tempfile
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from .. import address as addresses
from ..checkpoint import body, open_local
from ..errors import CofuseError
from ..store.remotes.addresses import parse
from .client import HubClient
from .sending import Bundle, Journal, patch_of, send

LOG = logging.getLogger("cofuse")


class Contribute(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    """Offers what was trained when the training ends: its body, as a patch to the base.

    A training is never lost because a hub is away: what could not be sent stays in `folder`, and a warning says how to send it.

    Args:
        address: `https://host/owner/name`, whose branch the training started from.
        title: in a line.
        branch: of the hub.
        base: the commit that the model was loaded from; the branch's tip when the training begins, when left out.
        message, data, licence, labels: see `cofuse contribute`.
        token: whose name it is sent in; that of `cofuse login` when None.
        folder: where the patch is kept until it is sent.

    Attributes:
        number: of the contribution, once it has been offered.
        error: why it was not.
    """

    def __init__(
        self,
        address: str,
        *,
        title: str,
        branch: str = "main",
        base: str | None = None,
        message: str = "",
        data: str = "",
        licence: str = "",
        labels: tuple[str, ...] = (),
        token: str | None = None,
        folder: str | Path | None = None,
    ) -> None:
        self._address = parse(address)
        self._said: dict[str, Any] = {
            "title": title,
            "branch": branch,
            "message": message,
            "data": data,
            "licence": licence,
            "labels": list(labels),
        }
        self._base = base
        self._token = token
        self._folder = Path(folder or f"{self._address.name}.contribution")
        self.number: int | None = None
        self.error: CofuseError | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        """Remember what the branch is at, before others move it."""
        if state.is_world_process_zero and self._base is None:
            with self._client() as client:
                self._base = client.resolve(self._said["branch"])

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **rest: Any) -> None:
        """Take the body, and offer it."""
        if not state.is_world_process_zero:
            return
        kept: Path | None = None
        try:
            base = addresses.open(f"{self._address.url}@{self._base}")
            with tempfile.TemporaryDirectory() as scratch:
                model.save_pretrained(scratch)
                kept = patch_of(base, body(open_local(Path(scratch)), like=base), self._folder)
            said = {**self._said, "base": self._base, "metrics": _metrics(state)}
            examples = _examples(rest.get("train_dataloader"))
            if examples:
                said["examples"] = examples
            with self._client() as client:
                made = send(client, Bundle(patch=kept), said, Journal(self._folder))
                self.number = int(made["number"])
                LOG.warning("contributed: %s", client.page(self.number))
        except CofuseError as error:
            self.error = error
            hint = (
                ""
                if kept is None
                else f"; send it: cofuse contribute {self._address.url} --from {kept} --base {self._base}"
            )
            LOG.warning("not contributed: %s%s", error.line, hint)

    def _client(self) -> HubClient:
        return HubClient.at(self._address, self._token)


def _metrics(state: Any) -> dict[str, float]:
    """The last evaluation's, as the trainer has logged them."""
    for row in reversed(state.log_history):
        found = {
            key: float(value)
            for key, value in row.items()
            if key.startswith("eval_") and isinstance(value, int | float)
        }
        if found:
            return {key: value for key, value in found.items() if math.isfinite(value)}
    return {}


def _examples(loader: Any) -> int | None:
    try:
        return len(loader.dataset)
    except (AttributeError, TypeError):
        return None
