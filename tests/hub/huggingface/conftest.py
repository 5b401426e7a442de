"""Clients, and models that they send."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi
from safetensors.torch import save_file

from ..serving import HubServer

OWNER = "ann"


@pytest.fixture(scope="module")
def secret(hub_server: HubServer) -> str:
    """The token of somebody who makes models."""
    return hub_server.token(OWNER, "maintain")


@pytest.fixture(scope="module")
def api(hub_server: HubServer, secret: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HfApi]:
    """A client in this process, which sends large files by Git LFS."""
    cache = tmp_path_factory.mktemp("hf")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
        patch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        yield HfApi(endpoint=hub_server.url, token=secret)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as `save_pretrained` leaves it: weights, small files, a larger one, an empty one, and what training left."""
    here = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    save_file({"a": torch.randn(300, 100), "b": torch.randn(7)}, here / "model.safetensors", {"format": "pt"})
    (here / "config.json").write_text('{"model_type": "bert", "hidden_size": 4}')
    (here / "README.md").write_text("---\nlicense: mit\ntags: [tiny]\n---\n# Tiny\n")
    (here / "vocab.txt").write_text("word\n" * 300_000)
    (here / "empty").touch()
    (here / "sub" / "deep").mkdir(parents=True)
    (here / "sub" / "deep" / "note.txt").write_text("a note")
    (here / "training_args.bin").write_bytes(b"\x80\x02.")
    return here


@pytest.fixture
def run_client(hub_server: HubServer, secret: str, tmp_path: Path) -> Callable[..., str]:
    """Runs a program with the environment of a client of the hub; gives what it printed."""

    def run(program: Path, *arguments: str, python: str = sys.executable, **more: str) -> str:
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))},
            **{"HF_ENDPOINT": hub_server.url, "HF_TOKEN": secret, "HF_HOME": str(tmp_path / "home")},
            **{"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1", **more},
        }
        done = subprocess.run(
            [python, str(program), *arguments], check=False, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run
