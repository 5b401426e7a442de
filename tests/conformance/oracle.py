"""mergekit, answering one job a line; run by an interpreter that has it (see conftest.py), never by pytest's.

Starting mergekit takes seconds, so one process does many jobs. A job is a JSON object on a line of stdin, the answer one on
a line of stdout:

    {"do": "merge", "recipe": PATH, "out": PATH, "options": {...}}    {"seconds": S} or {"error": TRACEBACK}
    {"do": "methods"}     {"methods": {NAME: {PARAMETER: {"scope": "shared" | "input" | "non_base", "default": ...}}}}
    {"do": "version"}     {"version": "0.1.5"}

A required parameter has no default.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any


def merge(job: dict[str, Any]) -> dict[str, Any]:
    import yaml
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    options = {"quiet": True, "copy_tokenizer": False, "write_model_card": False, **job.get("options", {})}
    recipe = MergeConfiguration.model_validate(yaml.safe_load(Path(job["recipe"]).read_text()))
    started = time.perf_counter()
    run_merge(recipe, job["out"], MergeOptions(**options))
    return {"seconds": time.perf_counter() - started}


def methods(_: dict[str, Any]) -> dict[str, Any]:
    from mergekit.merge_methods.registry import registered_methods

    found: dict[str, Any] = {}
    for method in registered_methods():
        found[method.spec.name] = {
            p.name: {"scope": p.scope.value} | ({} if p.required else {"default": p.default})
            for p in method.spec.parameters
        }
    return {"methods": found}


def version(_: dict[str, Any]) -> dict[str, Any]:
    return {"version": importlib.metadata.version("mergekit")}


JOBS = {"merge": merge, "methods": methods, "version": version}


def main() -> None:
    warnings.simplefilter("ignore")
    # mergekit and its libraries print; answers have the real stdout to themselves.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        job = json.loads(line)
        try:
            answer = JOBS[job["do"]](job)
        except Exception:
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main()
