"""Unmodified clients: huggingface_hub of today, by either way of sending files, and of a year ago; transformers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import OWNER

HERE = Path(__file__).parent
OLD = "huggingface_hub==0.36.2"


@pytest.mark.parametrize("way", ["xet", "lfs"])
def test_the_story(run_client: Callable[..., str], folder: Path, way: str) -> None:
    off = {"HF_HUB_DISABLE_XET": "1"} if way == "lfs" else {}
    assert "told" in run_client(HERE / "client_story.py", OWNER, str(folder), **off)


def test_transformers_load_what_they_have_pushed(run_client: Callable[..., str]) -> None:
    assert "told" in run_client(HERE / "transformers_story.py", OWNER)


def test_the_command_line(run_client: Callable[..., str], folder: Path, tmp_path: Path) -> None:
    hf = Path(sys.executable).with_name("hf")
    start = "import sys; from huggingface_hub.cli.hf import main; sys.argv[0] = 'hf'; main()"
    assert hf.exists()
    program = tmp_path / "hf.py"
    program.write_text(start)
    run_client(program, "upload", f"{OWNER}/by-hand", str(folder), ".", "--exclude", "*.bin")
    run_client(program, "download", f"{OWNER}/by-hand", "--local-dir", str(tmp_path / "got"))
    assert (tmp_path / "got" / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_the_story_as_of_a_year_ago(
    run_client: Callable[..., str], folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = tmp_path_factory.mktemp("old")
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    python = str(place / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", OLD], check=True)
    assert "told 0.36.2" in run_client(HERE / "client_story.py", OWNER, str(folder), python=python)
