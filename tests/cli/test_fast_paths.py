"""What must start quickly does not import what takes seconds."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer

from cofuse.checkpoint import Memory
from cofuse.cli.app import VERBS

HEAVY = ("torch", "transformers", "sklearn", "matplotlib")


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "passthrough", "slerp", "ties"])
def test_a_fuse_imports_no_torch(method: str, tmp_path: Path) -> None:
    for name in ("base", "a"):
        Memory({"x": torch.randn(4, 4)}).save(tmp_path / name)
    own = {"slerp": "parameters: {t: 0.5}"}.get(method, "")
    base = "" if method in {"linear", "passthrough"} else "base_model: base"
    (tmp_path / "r.yaml").write_text(f"merge_method: {method}\nmodels: [{{model: a}}]\n{base}\n{own}\n")
    code = (
        "import sys; from cofuse.cli.app import application\n"
        "try: application('fuse')(['fuse', 'r.yaml', 'out'])\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        f"print([m for m in {HEAVY} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("module", VERBS)
def test_the_table_of_verbs_is_what_the_modules_have(module: str) -> None:
    app = typer.Typer()
    importlib.import_module(f"cofuse.cli.{module}").register(app)
    commands = [command.name or command.callback.__name__ for command in app.registered_commands if command.callback]
    groups = [group.name or group.typer_instance.info.name for group in app.registered_groups if group.typer_instance]
    assert (*commands, *groups) == VERBS[module]
