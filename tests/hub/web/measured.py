"""What the village's models are made of, and what was measured of them: small tensors, plausible numbers."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy.orm import Session as Transaction

from cofuse.hub.database import Evaluation, Repository

TASKS = {
    "sst2": ("accuracy", 88.0),
    "cola": ("matthews", 42.0),
    "mrpc": ("accuracy", 78.0),
    "rte": ("accuracy", 60.0),
    "stsb": ("spearman", 83.0),
}


def add_scores(t: Transaction, repository: Repository, commit: str, scores: Mapping[str, float], now: float) -> None:
    """Scores of a version on its repository's suite, and their mean."""
    mean = sum(scores.values()) / len(scores)
    for task, score in [*scores.items(), ("*", mean)]:
        half = 0.8 if task == "*" else 1.7
        metric = TASKS.get(task, ("accuracy", 0))[0] if task != "*" else "mean"
        t.add(
            Evaluation(
                repository_id=repository.id,
                commit=commit,
                suite=repository.suite_hash,
                task=task,
                protocol="probe",
                metric=metric,
                mean=score,
                low=score - half,
                high=score + half,
                n=5 if task == "*" else 872,
                created=now,
            )
        )


def verdict(before: Mapping[str, float], after: Mapping[str, float], state: str, step: str | None) -> dict[str, Any]:
    """What the gate says of two versions."""
    rows = []
    for task, (metric, level) in TASKS.items():
        mean = after[task] - before[task]
        row = {
            "task": task,
            "protocol": "oldhead",
            "metric": metric,
            "old": level + before[task],
            "new": level + after[task],
            "margin": 1.0,
        }
        rows.append({**row, "mean": mean, "low": mean - 1.3, "high": mean + 1.3})
    said = {
        "pass": "no task has lost more than its margin",
        "block": "rte has lost 2.4 points, more than its margin of 1",
        "undecided": "rte and cola may have lost more than their margin of 1 point",
    }
    mean = sum(row["mean"] for row in rows) / len(rows)
    return {
        "state": state,
        "step": step,
        "reasons": [said[state]],
        "tasks": rows,
        "mean": {"mean": mean, "low": mean - 0.6, "high": mean + 0.6},
    }


def weights(folder: Path, seed: int, card: str) -> None:
    """A model's folder; its tensors are small, their names are real."""
    draw = np.random.default_rng(seed)
    tensors = {name: draw.standard_normal(shape, np.float32) for name, shape in _shapes().items()}
    header, at = {}, 0
    for name, values in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(values.shape), "data_offsets": [at, at + values.nbytes]}
        at += values.nbytes
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    (folder / "1_Pooling").mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(
        len(raw).to_bytes(8, "little") + raw + b"".join(v.tobytes() for v in tensors.values())
    )
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 6}))
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "README.md").write_text(card)


PARTS = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
)


def _shapes() -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {"embeddings.word_embeddings.weight": (32, 8)}
    for layer in range(6):
        for part in PARTS:
            found |= {f"encoder.layer.{layer}.{part}.weight": (8, 8), f"encoder.layer.{layer}.{part}.bias": (8,)}
    return found | {"pooler.dense.weight": (8, 8)}


def changes(seed: int) -> list[dict[str, Any]]:
    """How far each tensor moved, as the check of norms writes it."""
    draw = random.Random(seed)
    rows = []
    for name in _shapes():
        layer, part = None, name
        if name.startswith("encoder"):
            _, _, number, part = name.split(".", 3)
            layer = int(number)
        usual = 0.01 * (1 + (layer or 0)) * (0.3 if name.endswith("bias") else 1)
        rows.append(
            {
                "name": name,
                "layer": layer,
                "part": part,
                "change": 0.1,
                "base": 2.0,
                "relative": usual * draw.lognormvariate(0, 0.5),
            }
        )
    return rows
