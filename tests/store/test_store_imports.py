"""Storing never loads torch, and loading the store is quick."""

import subprocess
import sys
from pathlib import Path

WHOLE_DAY = """
import sys
from pathlib import Path
from cofuse.store import Store
from cofuse.checkpoint import content_id, open_local
import cofuse
here, folder = Path(sys.argv[1]), Path(sys.argv[2])
store = Store.init(here)
commit = store.commit(folder, message="one")
store.commit(open_local(folder), message="two", record={"a": 1})
store.tag("v1")
store.checkout("main~1", here / "out")
opened = cofuse.open("v1", cwd=here)
opened.save(here / "saved")
assert content_id(opened) == commit.content
assert store.fsck().ok
assert "torch" not in sys.modules, "torch"
assert "transformers" not in sys.modules, "transformers"
assert "huggingface_hub" not in sys.modules, "huggingface_hub"
"""


def test_no_torch_on_any_path_of_the_store(model: Path, tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", WHOLE_DAY, str(tmp_path / "here"), str(model)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr


def test_importing_the_store_is_quick() -> None:
    code = "import time; t = time.process_time(); import cofuse.store; print(time.process_time() - t)"
    took = min(float(subprocess.check_output([sys.executable, "-c", code], text=True)) for _ in range(3))
    assert took < 0.15
