"""Language models through lm-evaluation-harness: its tasks, our records.

The package is an extra. What it gives is kept example by example, like every other score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...canonical import digest
from ...checkpoint import save
from ...errors import SuiteError
from ..outcomes import Outcomes
from .evaluating import Model, versions
from .records import Record, Records

# Which of a task's metrics is its score, the first that it has: length-normalised accuracy before the bare one.
_METRICS = ("acc_norm", "acc", "exact_match", "f1", "mcc")


def harness(
    model: Model, tasks: Sequence[str], records: Records, folder: Path, *, shots: int = 0, limit: int | None = None
) -> tuple[Record, ...]:
    """Measure a language model on tasks of lm-evaluation-harness.

    Args:
        model: is written to `folder`, from which the package loads it.
        tasks: by the package's names.
        records: where they are looked for and kept.
        folder: for the model's files; one that will be removed.
        shots: worked examples in the prompt.
        limit: first examples of each task; all when None.

    Raises:
        SuiteError: the package is not installed, knows no such task, or fails.
    """
    package = _package()
    settings = {"shots": shots, "limit": limit, "harness": package.__version__}
    suite = digest("harness", tasks=sorted(tasks), **settings)
    ids = {t: digest("harness score", model=[model.content, model.files], task=t, **settings) for t in tasks}
    found = {t: records.get(model.content, "harness", suite, i) for t, i in ids.items()}
    left = [t for t, record in found.items() if record is None]
    if left:
        save(model.open(), folder, durable=False)
        for task, outcomes, metric in _run(package, folder, left, shots, limit):
            record = Record(
                id=ids[task],
                content=model.content,
                files=model.files,
                suite="harness",
                suite_hash=suite,
                measure=digest("harness measure", task=task, **settings),
                task=task,
                task_id=f"harness:{task}",
                protocol="harness",
                settings=settings,
                metric=metric,
                seed=0,
                value=outcomes.value,
                tested=len(outcomes),
                outcomes="",
                versions=versions(),
                seconds=0.0,
            )
            found[task] = records.add(record, outcomes)
    return tuple(r for t in tasks if (r := found[t]) is not None)


def _package() -> Any:
    try:
        import lm_eval
    except ImportError as error:
        raise SuiteError(
            "lm-evaluation-harness is not installed", got=f"no {error.name}", hint='pip install "cofuse[harness]"'
        ) from None
    return lm_eval


def _run(
    package: Any, folder: Path, tasks: Sequence[str], shots: int, limit: int | None
) -> list[tuple[str, Outcomes, str]]:
    try:
        said: Mapping[str, Any] = package.simple_evaluate(
            model="hf",
            model_args={"pretrained": str(folder), "dtype": "float32"},
            tasks=list(tasks),
            num_fewshot=shots,
            limit=limit,
            log_samples=True,
        )
    except Exception as error:  # the package raises whatever its tasks and data sets raise
        raise SuiteError(
            "lm-evaluation-harness failed", got=f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
        ) from None
    return [(task, *_outcomes(task, said["samples"][task])) for task in tasks]


def _outcomes(task: str, samples: Sequence[Mapping[str, Any]]) -> tuple[Outcomes, str]:
    """Each example's score, in percent.

    >>> _outcomes("t", [{"doc_id": 3, "acc": 1.0}, {"doc_id": 5, "acc": 0.0}])[0].value
    50.0
    """
    metric = next((m for m in _METRICS if samples and all(m in s for s in samples)), None)
    if metric is None:
        raise SuiteError("a task without a score for each example", where=task, expected=" or ".join(_METRICS))
    outcomes = Outcomes(
        model="",
        task=task,
        task_id=f"harness:{task}",
        protocol="harness",
        metric=metric,
        examples=np.array([s["doc_id"] for s in samples], dtype=np.int64),
        scores=100.0 * np.array([float(s[metric]) for s in samples]),
    )
    return outcomes, metric
