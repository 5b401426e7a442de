"""mergekit 0.1.5 as the oracle, in a process and an environment of its own.

COFUSE_MERGEKIT names a Python that has it; `make conformance` makes one. Without, these tests skip.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .inputs import Inputs, finetuned, synthetic
from .report import Report

VERSION = "0.1.5"


class Oracle:
    """mergekit in one process that does many merges."""

    def __init__(self, python: str, log: Path) -> None:
        self._log = log
        with log.open("w") as stderr:
            self._process = subprocess.Popen(
                [python, str(Path(__file__).parent / "oracle.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env={**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"},
            )

    def ask(self, **job: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"mergekit's process ended: {self._log.read_text()[-2000:]}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"mergekit failed:\n{answer['error']}")
        return answer

    def merge(self, recipe: Path, out: Path, **options: Any) -> float:
        """Run a recipe; gives seconds, without mergekit's start."""
        seconds: float = self.ask(do="merge", recipe=str(recipe), out=str(out), options=options)["seconds"]
        return seconds

    def close(self) -> None:
        self._process.communicate(timeout=60)


@pytest.fixture(scope="session")
def mergekit_python() -> str:
    """The interpreter that has mergekit."""
    python = os.environ.get("COFUSE_MERGEKIT")
    if not python:
        pytest.skip("COFUSE_MERGEKIT names no Python with mergekit; `make conformance` makes one")
    return python


@pytest.fixture(scope="session")
def oracle(mergekit_python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Oracle]:
    """mergekit's Python interface: many merges, one start."""
    started = Oracle(mergekit_python, tmp_path_factory.mktemp("oracle") / "log")
    found = started.ask(do="version")["version"]
    if found != VERSION:
        pytest.fail(f"COFUSE_MERGEKIT has mergekit {found}, not {VERSION}")
    yield started
    started.close()


@pytest.fixture(scope="session")
def mergekit(mergekit_python: str) -> Callable[..., None]:
    """`mergekit(recipe, out, *flags)` runs the `mergekit-yaml` command in a process of its own."""

    def run(recipe: Path | str, out: Path | str, *flags: str) -> None:
        command = [mergekit_python, "-m", "mergekit.scripts.run_yaml", str(recipe), str(out), "--quiet", *flags]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"mergekit-yaml failed:\n{done.stderr[-4000:]}")

    return run


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Inputs]:
    """`made("random" | "minilm", "F32" | "BF16")`: checkpoints on disk, each kind made when it is first asked for."""
    folder = tmp_path_factory.mktemp("inputs")
    found: dict[tuple[str, str], Inputs] = {}

    def make(kind: str, dtype: str) -> Inputs:
        if (kind, dtype) not in found:
            maker = {"random": synthetic, "minilm": finetuned}[kind]
            found[kind, dtype] = maker(folder / kind, dtype)
        return found[kind, dtype]

    return make


_REPORT = pytest.StashKey[Report]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_REPORT] = Report()


@pytest.fixture(scope="session")
def report(request: pytest.FixtureRequest) -> Report:
    """What the end of the run prints."""
    return request.config.stash[_REPORT]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    lines = config.stash[_REPORT].lines() if _REPORT in config.stash else []
    if lines:
        terminalreporter.section("deviation from mergekit")
        for line in lines:
            terminalreporter.write_line(line)
