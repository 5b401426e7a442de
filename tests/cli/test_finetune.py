"""`cofuse finetune` as a newcomer types it, and every command of docs/finetuning.md."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tasks.tiny import bert, opinion_task

from cofuse.address import open as open_address
from cofuse.checkpoint import content_id, open_local
from cofuse.cli.app import application
from cofuse.errors import CofuseError
from cofuse.patch import Patch

from .test_newcomer import done, refused

PAGE = Path(__file__).parents[2] / "docs" / "finetuning.md"
QUICK = ("--steps", "4", "--max-length", "16")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("here")
    bert().save(folder / "base")
    opinion_task(folder / "tasks" / "opinions")
    return folder


def ran(*words: str, cwd: Path) -> None:
    """A command in this process, which has torch in it already."""
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(cwd)
        application(words[0])(list(words), standalone_mode=False)


def test_every_command_of_the_page(here: Path) -> None:
    """In order; the page's steps are cut to a few."""
    text = PAGE.read_text(encoding="utf-8")
    commands = re.findall(r"^\$ (cofuse .*)$", text, re.MULTILINE)
    assert len(commands) >= 6
    for command in commands:
        words = shlex.split(command)[1:]
        ran(*words, *(QUICK if words[0] == "finetune" and "--epochs" not in words else ()), cwd=here)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(here)
        for block in re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            exec(compile(block, str(PAGE), "exec"), {})


def test_a_masked_patch_there_and_back(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ("finetune", "base", "--task", "tasks/opinions", "--mask", "fish:5%", *QUICK, "--fisher-examples", "32")
    said = json.loads(done(*line, "-o", "fish.patch", "--json", cwd=here))
    patch = Patch.load(here / "fish.patch")
    assert patch.exact
    assert patch.manifest.made == "exact, trained: fish:5%"
    assert said["bytes"] == (here / "fish.patch").stat().st_size
    assert said["trained"] == round(0.05 * said["reachable"]) >= said["changed"] > 0
    assert (here / "fish.head.safetensors").is_file()
    ran(*line, "-o", "fish", cwd=here)
    told = capsys.readouterr().out
    assert f"changed: {said['changed']:,} of {said['values']:,} values" in told
    assert f"accuracy {said['score']:.2f} after 4 steps" in told
    applied = open_address(f"{here}/base+{here}/fish.patch")
    assert content_id(applied) == content_id(open_local(here / "fish")) == patch.result
    assert (here / "fish" / "head.safetensors").read_bytes() == (here / "fish.head.safetensors").read_bytes()
    assert not list(here.glob("*.training"))


@pytest.mark.parametrize(
    ("options", "says"),
    [((), "all of the body"), (("--lora", "2"), "LoRA of rank 2"), (("--ia3",), "IA3"), (("--mask", "bias"), "bias")],
)
def test_every_way_writes_a_model_and_the_same_as_a_patch(
    options: tuple[str, ...], says: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ("finetune", "base", "--task", "opinions", "--tasks", "tasks", *options, *QUICK)
    ran(*line, "-o", "m", cwd=here)
    assert f"trained: {says}: " in capsys.readouterr().out
    ran(*line, "-o", "m.patch", "--head-out", "heads/m.safetensors", cwd=here)
    folder, patch = open_local(here / "m"), Patch.load(here / "m.patch")
    assert (here / "heads" / "m.safetensors").is_file()
    assert not (here / "m.head.safetensors").exists()
    if "--lora" in options:  # its products are summed in an order of their own
        assert {c.how for c in patch.manifest.tensors.values()} == {"product"}
    else:
        assert content_id(folder) == patch.result


def test_a_killed_training_leaves_nothing_and_goes_on(here: Path) -> None:
    line = ["finetune", "base", "--task", "tasks/opinions", "--mask", "magnitude:5%", "--max-length", "16", "-o", "k"]
    line += ["--steps", "100"]
    running = subprocess.Popen([sys.executable, "-m", "cofuse", *line], cwd=here)
    kept = here / "k.training" / "trainer"
    deadline = time.monotonic() + 120
    while running.poll() is None and not list(kept.glob("checkpoint-*/trainer_state.json")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    assert not (here / "k").exists()
    ran(*line, cwd=here)
    assert not (here / "k.training").exists()
    ran(*line[:-3], "straight", "--steps", "100", cwd=here)
    assert content_id(open_local(here / "k")) == content_id(open_local(here / "straight"))


def test_a_training_whose_result_cannot_be_written_is_kept(here: Path) -> None:
    line = ["finetune", "base", "--task", "tasks/opinions", "--max-length", "16", "--steps", "100", "-o", "w.patch"]
    running = subprocess.Popen([sys.executable, "-m", "cofuse", *line], cwd=here, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while running.poll() is None and not (here / "w.patch.training" / "work.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    (here / "w.patch").mkdir()  # somebody takes its place
    assert "w.patch" in running.communicate()[1]
    assert running.returncode == 1
    assert not (here / "w.head.safetensors").exists()
    assert (here / "w.patch.training" / "trainer" / "checkpoint-100").is_dir()
    (here / "w.patch").rmdir()
    ran(*line, cwd=here)
    assert not (here / "w.patch.training").exists()
    ran(*line[:-1], "straight.patch", cwd=here)
    assert Patch.load(here / "w.patch").result == Patch.load(here / "straight.patch").result


@pytest.mark.parametrize("options", [(), ("--set", "freeze=[nothing]")])
def test_a_folder_that_is_in_the_way_of_the_work_stays(options: tuple[str, ...], here: Path, tmp_path: Path) -> None:
    kept = tmp_path / "m.training" / "thesis.txt"
    kept.parent.mkdir()
    kept.write_text("years", encoding="utf-8")
    with pytest.raises(CofuseError, match="other things"):
        ran("finetune", "base", "--task", "tasks/opinions", *QUICK, *options, "-o", str(tmp_path / "m"), cwd=here)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [kept]
    assert kept.read_text(encoding="utf-8") == "years"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--head-out", "tasks"), "not a head's file"),
        (("--head-out", "base/config.json/h"), "cannot write"),
        (("--head-out", "refused/h.safetensors"), "another place"),
        (("--task", "nothing"), "unknown task"),
        (("--mask", "fsih:1%"), 'did you mean "fish"'),
        (("--mask", "fish"), "how many values"),
        (("--mask", "fish:1%:F"), "--fisher F"),
        (("--mask", "bias", "--lora", "2"), "do not go together"),
        (("--mask", "bias", "--fisher", "base"), "an option of fish masks"),
        (("--mask", "fish:1%", "--fisher", "base"), "not statistics"),
        (("--mask", "names:nothing"), "chooses nothing"),
        (("--per-tensor",), "an option of masks"),
        (("--epochs", "2"), "steps"),
        (("--set", "warmpup=1"), 'unknown key "warmpup"'),
        (("--set", "freeze=[nothing]"), "freezes nothing"),
        (("--lr", "1e30"), "diverged"),
        (("-o", "tasks"), "the folder holds other things"),
    ],
)
def test_what_cannot_be_is_refused_and_leaves_nothing(options: tuple[str, ...], says: str, here: Path) -> None:
    defaults = {"--task": "tasks/opinions", "-o": "refused"}
    given = [word for key, value in defaults.items() if key not in options for word in (key, value)]
    before = {p.name for p in here.iterdir()}
    with pytest.raises(CofuseError) as caught:
        ran("finetune", "base", *given, *QUICK, *options, cwd=here)
    assert says in str(caught.value)
    assert {p.name for p in here.iterdir()} == before


def test_a_mistake_is_one_clear_line(here: Path) -> None:
    assert "a mask by names has names" in refused(
        "finetune", "base", "--task", "tasks/opinions", "-o", "refused", "--mask", "names:", cwd=here
    )
    assert not (here / "refused").exists()
