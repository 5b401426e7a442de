"""The chat template of the result."""

from __future__ import annotations

from collections.abc import Mapping

from ..checkpoint import Checkpoint


def with_chat_template(template: str | None, models: Mapping[str, Checkpoint], *, leader: str) -> dict[str, Checkpoint]:
    """The models, the leader's files with the template in them.

    Args:
        template: "auto", the name of a built-in one ("chatml"), or a template; None keeps the leader's.
        models: by address.
        leader: the address of the one whose files become the result's.
    """
    raise NotImplementedError
