"""A small suite of digits, in seconds, and suites opened from documents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cofuse.measure.evaluation.suite import OpenSuite, Suite, open_suite

SUITE: dict[str, Any] = {
    "name": "digits",
    "seeds": [0, 1],
    "protocols": {
        "probe": {"examples": 30, "test": 50, "probing": {"precision": "fp32"}},
        "finetune": {"examples": 10, "test": 50, "finetuning": {"steps": 2, "precision": "fp32"}},
    },
    "tasks": [
        {"name": n, "kind": "image_classification", "data": {"source": "digits", "groups": g}}
        for n, g in {"even": [[1, 3], [0, 2]], "small": [[0, 1], [2, 3]]}.items()
    ],
}


def opened(document: dict[str, Any], folder: Path = Path(), **options: Any) -> OpenSuite:
    return open_suite(Suite.model_validate(document), [folder], **options)
