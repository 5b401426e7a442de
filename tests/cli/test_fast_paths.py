"""What must start quickly does not import what takes seconds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cofuse.checkpoint import Memory

HEAVY = ("torch", "transformers", "sklearn", "matplotlib")


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "passthrough", "slerp", "ties"])
def test_a_fuse_imports_no_torch(method: str, tmp_path: Path) -> None:
    for name in ("base", "a"):
        Memory({"x": torch.randn(4, 4)}).save(tmp_path / name)
    own = {"slerp": "parameters: {t: 0.5}"}.get(method, "")
    base = "" if method in {"linear", "passthrough"} else "base_model: base"
    (tmp_path / "r.yaml").write_text(f"merge_method: {method}\nmodels: [{{model: a}}]\n{base}\n{own}\n")
    code = (
        "import sys; from cofuse.cli.app import app\n"
        "try: app(['fuse', 'r.yaml', 'out'])\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        f"print([m for m in {HEAVY} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
