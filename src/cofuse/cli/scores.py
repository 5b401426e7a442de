"""What `show` says of a version's scores: the records that evaluations left beside the store's objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..store import Store


def scores_of(store: Store, content: str | None) -> list[dict[str, Any]]:
    """Means over seeds of all that was measured of a model; none where nothing was."""
    folder: Path = store.path / "evaluations"
    if content is None or not (folder / content).is_dir():
        return []
    from ..measure.evaluation.records import (
        Records,  # numpy and pydantic, which a version without scores need not wait for
    )

    values: dict[tuple[str, ...], list[float]] = {}
    for r in Records(folder).of(content):
        values.setdefault((r.suite, r.suite_hash, r.task, r.protocol, r.metric), []).append(r.value)
    names = ("suite", "suite_hash", "task", "protocol", "metric")
    return [
        {**dict(zip(names, key, strict=True)), "mean": sum(found) / len(found), "seeds": len(found)}
        for key, found in sorted(values.items())
    ]


def score_lines(store: Store, content: str | None) -> list[str]:
    """The same as lines."""
    return [
        f"score {s['mean']:.2f} {s['metric']}: {s['task']}, {s['protocol']}, {s['seeds']} seed{'s'[: s['seeds'] > 1]}, "
        f"suite {s['suite']} {s['suite_hash'][:12]}"
        for s in scores_of(store, content)
    ]
