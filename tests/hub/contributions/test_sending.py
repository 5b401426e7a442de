"""Contributing as people do: by the command, by a training script; through networks that are cut."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tasks.tiny import bert, opinion_task

from cofuse.checkpoint import Memory, content_id, open_local
from cofuse.cli.app import application
from cofuse.credentials import Machine, use
from cofuse.errors import CofuseError
from cofuse.hub.client import HubClient
from cofuse.hub.database import Upload
from cofuse.hub.sending import PATCH, Bundle, Journal, patch_of, send
from cofuse.patch import apply
from cofuse.patch.patch import Patch
from cofuse.store.remotes.addresses import parse
from cofuse.store.remotes.http import Http

from ..serving import HubServer
from .bench import Bench

PAGE = Path(__file__).parents[3] / "docs" / "contributing-models.md"
QUICK = ("--steps", "4", "--max-length", "16")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base in a folder, a task, and something that was tuned from the base."""
    folder = tmp_path_factory.mktemp("files")
    bert().save(folder / "base")
    opinion_task(folder / "tasks" / "opinions")
    base = open_local(folder / "base")
    tuned = {
        n: base.read(n) + 0.01 * torch.randn(base.spec(n).shape, generator=torch.Generator().manual_seed(3))
        for n in base.names()
    }
    Memory(tuned, files=dict(base.files)).save(folder / "tuned")
    return folder


@pytest.fixture
def model(bench: Bench, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """A repository with that base; commands are ann's, in a folder of the test's own."""
    bench.commit = bench.store.commit(files / "base", message="the base", branch="main").id
    secret = bench.server.token(f"ann{bench.row.id}", "contribute")
    use(Machine(credentials=tmp_path / "credentials", cache=tmp_path / "cache", token=secret))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(files / "tasks", tmp_path / "tasks")
    yield bench
    use(Machine(credentials=tmp_path / "credentials", cache=tmp_path / "cache"))


def ran(*words: str) -> None:
    """A command in this process, which has torch in it already."""
    application(words[0])(list(words), standalone_mode=False)


def url(bench: Bench) -> str:
    return f"{bench.server.url}/{bench.name}"


def test_finetuned_and_sent_by_one_command(model: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    said = ("--title", "Opinions", "--data", "made up", "--licence", "cc0-1.0", "--metric", "accuracy=61.5")
    ran("contribute", url(model), "--task", "tasks/opinions", "--mask", "bias", *QUICK, *said)
    told = capsys.readouterr().out
    assert f"#1 received: Opinions\n{url(model)}/contributions/1\n" in told
    model.work()
    seen = model.look(1)
    assert seen["state"] == "open"
    assert (seen["data"], seen["licence"], seen["metrics"]) == ("made up", "cc0-1.0", {"accuracy": 61.5})
    folder = Path(f"{model.name.partition('/')[2]}.contribution")
    patch = Patch(folder / PATCH)
    assert seen["content"] == patch.result
    changed = {row["name"] for row in seen["checks"]["norms"]["detail"]["tensors"] if row["change"]}
    assert changed
    assert all(name.endswith("bias") for name in changed)
    assert not (folder / "sending.json").exists()


@pytest.mark.parametrize("way", ["folder", "patch", "whole"])
def test_what_a_script_made_is_sent(model: Bench, files: Path, way: str, capsys: pytest.CaptureFixture[str]) -> None:
    source = files / "tuned"
    if way == "patch":
        source = patch_of(open_local(files / "base"), open_local(files / "tuned"), Path("made"))
    ran("contribute", url(model), "--from", str(source), "--json", *(["--whole"] if way == "whole" else []))
    made = json.loads(capsys.readouterr().out)
    assert made["source"] == ("weights" if way == "whole" else "patch")
    model.work()
    assert model.look(made["number"])["content"] == content_id(open_local(files / "tuned"))


def test_what_is_sent_whole_is_this_one(model: Bench, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The folder of the one before, which has its weights, is no reason to send those once more."""
    before = open_local(files / "tuned")
    Memory({n: before.read(n) * 2 for n in before.names()}, files=dict(before.files)).save(Path("second"))
    for source in (files / "tuned", Path("second")):
        ran("contribute", url(model), "--from", str(source), "--json", "--whole")
        made = json.loads(capsys.readouterr().out)
        model.work()
        assert model.look(made["number"])["content"] == content_id(open_local(source))


def test_looked_at_and_decided_by_commands(model: Bench, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran("contribute", url(model), "--from", str(files / "tuned"), "--title", "Mine")
    model.work()
    ran("contributions", "comment", url(model), "1", "-m", "please look")
    ran("contributions", "list", url(model), "--state", "open")
    ran("contributions", "show", url(model), "1")
    told = capsys.readouterr().out
    assert "open" in told
    assert "please look" in told
    assert "pass    finite" in told
    with pytest.raises(CofuseError, match="not allowed"):
        ran("contributions", "accept", url(model), "1")
    ran("contributions", "withdraw", url(model), "1")
    use(Machine(token=model.owner))
    with pytest.raises(CofuseError, match="cannot be refused"):
        ran("contributions", "refuse", url(model), "1", "-m", "no")
    assert "#1 withdrawn: Mine" in capsys.readouterr().out


class Cutting:
    """A way to a hub that goes down after so many bytes."""

    def __init__(self, port: int, most: int) -> None:
        self._port, self._left = port, most
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while self._left > 0:
            with contextlib.suppress(OSError):
                here, _ = self._socket.accept()
                there = socket.create_connection(("127.0.0.1", self._port))
                threading.Thread(target=self._pass, args=(there, here, False), daemon=True).start()
                threading.Thread(target=self._pass, args=(here, there, True), daemon=True).start()
        self._socket.close()

    def _pass(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        with source, contextlib.suppress(OSError):
            while data := source.recv(65536):
                if counted:
                    self._left -= len(data)
                    if self._left <= 0:
                        break
                sink.sendall(data)
            for one in (source, sink):
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
            if self._left <= 0:
                self._socket.shutdown(socket.SHUT_RDWR)  # whoever waits there wakes


def test_an_upload_that_was_cut_goes_on_where_it_was(model: Bench, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    file = folder / PATCH
    file.write_bytes(torch.randint(0, 256, (24_000_000,), dtype=torch.uint8).numpy().tobytes())
    address, secret = parse(url(model)), model.server.token(f"bob{model.row.id}")
    said = {"title": "t", "branch": "main"}
    way = Cutting(model.server.port, 10_000_000)
    with pytest.raises(CofuseError), HubClient(Http(way.url, secret, patience=2.0), address) as client:
        send(client, Bundle(patch=file), said, Journal(folder))
    (key,) = Journal(folder).get("uploads").values()
    arrived = (model.hub.uploads / key).stat().st_size
    assert 5_000_000 < arrived < 12_000_000
    with HubClient(Http(model.server.url, secret), address) as client:
        made = send(client, Bundle(patch=file), said, Journal(folder))
    assert made["number"] == 1
    assert (model.hub.uploads / key).read_bytes() == file.read_bytes()
    with model.hub.database.reading() as look:
        assert look.query(Upload).filter(Upload.repository_id == model.row.id).count() == 1
    model.work()
    assert model.look(1)["checks"]["format"]["state"] == "refuse"


def test_an_answer_that_got_lost_makes_no_second_contribution(model: Bench, files: Path, tmp_path: Path) -> None:
    patch = patch_of(open_local(files / "base"), open_local(files / "tuned"), tmp_path / "work")
    with HubClient.at(parse(url(model))) as client:
        journal = Journal(tmp_path / "work")

        class Lost(Journal):
            def end(self) -> None:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            send(client, Bundle(patch=patch), {"title": "t"}, Lost(tmp_path / "work"))
        again = send(client, Bundle(patch=patch), {"title": "t"}, Journal(tmp_path / "work"))
        assert again["number"] == 1
        assert len(list(client.contributions())) == 1
        assert journal.folder.is_dir()


def test_a_fisher_goes_with_it(model: Bench, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from cofuse.measure.statistics.record import StatisticsRecord, with_record

    tuned = open_local(files / "tuned")
    record = StatisticsRecord(kind="fisher", model=content_id(tuned), examples=4)
    with_record({n: tuned.read(n).float().abs() for n in tuned.names() if "weight" in n}, record).save(Path("fisher"))
    ran("contribute", url(model), "--from", str(files / "tuned"), "--fisher", "fisher", "--json")
    model.work()
    seen = model.look(json.loads(capsys.readouterr().out)["number"])
    assert seen["checks"]["fisher"]["state"] == "pass", seen["reason"]
    assert seen["fisher"]


@pytest.mark.parametrize(
    "words",
    [
        ("--from", "tuned", "--task", "tasks/opinions"),
        (),
        ("--from", "nowhere"),
        ("--from", "tuned", "--metric", "accuracy"),
        ("--from", "tuned", "--fisher", "tasks"),
        ("--from", "tuned", "--branch", "none"),
        ("--from", "tuned", "--base", "0" * 64),
    ],
)
def test_what_cannot_be_sent_is_one_clear_error(model: Bench, files: Path, words: tuple[str, ...]) -> None:
    shutil.copytree(files / "tuned", "tuned")
    with pytest.raises(CofuseError):
        ran("contribute", url(model), *words)
    with HubClient.at(parse(url(model))) as client:
        assert list(client.contributions()) == []


def test_three_lines_in_a_training_script(model: Bench, files: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

    from cofuse.hub.callback import Contribute

    classifier = AutoModelForSequenceClassification.from_pretrained(files / "base", num_labels=2)
    rows = [{"input_ids": [1, 2, 3, i % 5], "labels": i % 2} for i in range(8)]
    arguments = TrainingArguments(
        str(tmp_path / "out"),
        max_steps=2,
        per_device_train_batch_size=4,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer: Any = Trainer(classifier, arguments, train_dataset=rows)
    contribute = Contribute(url(model), title="From a script", data="made up")
    trainer.add_callback(contribute)
    trainer.train()
    assert contribute.error is None
    assert contribute.number == 1
    model.work()
    seen = model.look(1)
    assert seen["state"] == "open", seen
    assert (seen["title"], seen["examples"], seen["base"]) == ("From a script", 8, model.commit)
    kept = model.store.checkpoint(seen["commit"])
    trained = dict(classifier.bert.state_dict())
    assert all(torch.equal(kept.read(n), trained[n]) for n in kept.names() if n in trained)


def test_a_training_outlives_a_hub_that_is_away(
    files: Path, tmp_path: Path, model: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    from cofuse.hub.callback import Contribute

    class State:
        is_world_process_zero, log_history = True, ({"eval_accuracy": 0.5},)

    class Model:
        def save_pretrained(self, folder: str) -> None:
            shutil.copytree(files / "tuned", folder, dirs_exist_ok=True)

    contribute = Contribute(url(model), title="t", base=model.commit, token="cofuse_wrong", folder=tmp_path / "kept")
    contribute.on_train_end(None, State(), None, model=Model())
    assert contribute.error is not None
    assert "cofuse contribute" in caplog.text
    assert "cofuse_wrong" not in caplog.text
    before = open_local(files / "base")
    assert content_id(apply(before, Patch(tmp_path / "kept" / PATCH))) == content_id(open_local(files / "tuned"))


def test_the_client_needs_nothing_of_the_server() -> None:
    code = "import sys, cofuse.hub.client, cofuse.hub.sending; print({'fastapi','sqlalchemy','torch','starlette'} & set(sys.modules))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert told.stdout.strip() == "set()"


def test_looked_at_by_the_hubs_own_worker(start_hub: Any, files: Path, tmp_path: Path) -> None:
    """With `cofuse serve`'s worker, and --wait."""
    server: HubServer = start_hub(workers=1)
    made = Bench.make(server, tmp_path)
    made.commit = made.store.commit(files / "base", message="the base", branch="main").id
    patch = patch_of(open_local(files / "base"), open_local(files / "tuned"), tmp_path / "work")
    http = Http(server.url, server.token("ann"))
    with HubClient(http, parse(f"{server.url}/{made.name}")) as client:
        number = send(client, Bundle(patch=patch), {"title": "t"}, Journal(tmp_path / "work"))["number"]
        seen = client.wait(number, seconds=120)
    assert seen["state"] == "open"
    made.clients["owner"].close()


def test_every_command_of_the_page(model: Bench, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In order; trainings are cut to a few steps, and the hub has looked before anybody else does."""
    text = PAGE.read_text(encoding="utf-8")
    commands = re.findall(r"^\$ cofuse (.*)$", text, re.MULTILINE)
    assert len(commands) >= 6
    shutil.copytree(files / "tuned", "tuned")
    for command in commands:
        words = shlex.split(command.replace("https://hub.example.org/ann/tiny", url(model)))
        ran(*words, *(QUICK if "--task" in words else ()))
        model.work()
    assert "trained for three epochs" not in capsys.readouterr().err
    assert [model.look(1)["state"], model.look(2)["state"]] == ["withdrawn", "open"]
