"""Evaluating: the same records for any number of processes, made once, found again; models with their own heads."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tasks.tiny import BERT, bert, opinion_task, tokenizer_files, vit

from cofuse.checkpoint import Memory, open_local
from cofuse.errors import SuiteError, TaskError
from cofuse.measure.evaluation import evaluating
from cofuse.measure.evaluation.as_is import ALL, PerplexityProtocol, ZeroshotProtocol
from cofuse.measure.evaluation.evaluating import Evaluated, Measurement, Model, evaluate, opened
from cofuse.measure.evaluation.features import Features
from cofuse.measure.evaluation.protocols import measure
from cofuse.measure.evaluation.records import Record, Records
from cofuse.measure.evaluation.spread import spread
from cofuse.measure.evaluation.suite import OpenSuite
from cofuse.measure.outcomes import Outcomes
from cofuse.measure.own_head import label_order
from cofuse.tasks import Task
from cofuse.tasks.probe import Probing, features

from ..suites import SUITE
from ..suites import opened as open_document


@pytest.fixture
def model(tmp_path: Path) -> Model:
    vit().save(tmp_path / "model")
    return Model.of("model", partial(open_local, tmp_path / "model"))


def here(work: Measurement) -> Outcomes:
    return work()[0]


def kept(evaluated: Evaluated) -> list[dict[str, Any]]:
    """Records without what may differ."""
    return [r.model_dump(exclude={"seconds"}) for records in evaluated.records.values() for r in records]


def files(folder: Path) -> dict[str, tuple[int, int]]:
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}


def test_any_number_of_processes_gives_the_same(model: Model, tmp_path: Path) -> None:
    suite = open_document(SUITE)
    one = evaluate([model], suite, Records(tmp_path / "one"), jobs=1)
    two = evaluate([model], suite, Records(tmp_path / "two"), jobs=2, cache=tmp_path / "cache")
    assert kept(one) == kept(two)  # the hashes of the outcomes are among it
    assert (one.made, one.failures) == (8, ())
    # What one process of the suite's threads computes here is what they computed.
    for record in one.records["model"]:
        m = next(m for m in suite.measures if (m.task.name, m.protocol) == (record.task, record.protocol))
        mine = here(Measurement(model, None, m.task, m.protocol, m.settings, record.seed, 1, None))
        assert mine.value == record.value
        assert Records(tmp_path / "one").outcomes(record).value == record.value
    # Once made, they are found: nothing is computed, and no file is touched.
    before = files(tmp_path / "two")
    again = evaluate([model], suite, Records(tmp_path / "two"), jobs=2)
    assert (again.made, kept(again), files(tmp_path / "two")) == (0, kept(two), before)
    # Another suite that asks for the same writes it down as its own.
    less = open_document(SUITE, tasks=["even"])
    found = evaluate([model], less, Records(tmp_path / "two"))
    assert found.made == 0
    assert {r.suite_hash for r in found.records["model"]} == {less.hash} != {suite.hash}
    wanted = {(r.task, r.protocol, r.seed): r.value for r in two.records["model"]}
    assert all(wanted[r.task, r.protocol, r.seed] == r.value for r in found.records["model"])
    assert {o.suite for o in map(Records(tmp_path / "two").outcomes, found.records["model"])} == {less.hash}


def test_a_task_that_fails_is_told_and_the_others_go_on(model: Model, tmp_path: Path) -> None:
    texts = opinion_task(tmp_path / "opinions")  # a model of images has no tokenizer
    only_probe = open_document({**SUITE, "seeds": [0], "protocols": {"probe": SUITE["protocols"]["probe"]}})
    suite = OpenSuite(
        "mixed", (0,), (*only_probe.measures, type(only_probe.measures[0])(texts, *_rest(only_probe.measures[0])))
    )
    found = evaluate([model], suite, Records(tmp_path / "records"))
    assert [(f.task, f.protocol) for f in found.failures] == [("opinions", "probe")]
    assert [r.task for r in found.records["model"]] == ["even", "small"]


def _rest(measure: Any) -> tuple[Any, ...]:
    return measure.protocol, measure.settings, measure.threads


def record_of(content: str = "c" * 64, **changes: Any) -> Record:
    said: dict[str, Any] = {
        "id": "1" * 64, "content": content, "files": "f", "suite": "s", "suite_hash": "2" * 64, "measure": "m",
        "task": "t", "task_id": "i", "protocol": "probe", "settings": {}, "metric": "accuracy", "seed": 0,
        "value": 50.0, "tested": 2, "outcomes": "", "versions": {}, "seconds": 1.0,
    }  # fmt: skip
    return Record.model_validate({**said, **changes})


def test_records_are_whole_or_not_there(tmp_path: Path) -> None:
    records = Records(tmp_path)
    some = Outcomes.predicted(np.array([0, 1]), np.array([1, 1]), model="", task="t", protocol="probe")
    made = records.add(record_of(), some)
    key = (made.content, made.suite, made.suite_hash, made.id)
    assert records.get(*key) == made
    assert list(records.of(made.content)) == [made]
    assert list(records.of("../*")) == []
    assert records.outcomes(made).model == made.content
    for damaged in sorted(p for p in tmp_path.rglob("*") if p.is_file()):
        whole = damaged.read_bytes()
        for bad in (whole[:-3], b"", whole[:40] + b"?" + whole[41:]):
            damaged.write_bytes(bad)
            assert records.get(*key) is None  # and so it is made again
        damaged.write_bytes(whole)
    assert records.get(*key) == made


def test_a_model_that_changes_is_not_measured(model: Model, tmp_path: Path) -> None:
    vit(5).save(tmp_path / "model")
    evaluating._OPENED.clear()  # a process that has not opened it yet
    with pytest.raises(SuiteError, match="changed while"):
        opened(model)


def test_models_with_another_tokenizer_are_others() -> None:
    one = bert()
    other = Memory({n: one.read(n) for n in one.names()}, files={**one.files, "tokenizer_config.json": b"{}"})
    first, second = Model.of("a", lambda: one), Model.of("b", lambda: other)
    assert first.content == second.content
    assert first.files != second.files


def test_cached_features_are_the_computed_ones(tmp_path: Path) -> None:
    m = next(m for m in open_document(SUITE).measures if m.protocol == "probe")
    cache = Features(tmp_path / "cache")
    cold = measure(vit(), m.task, "probe", m.settings, seed=0, cache=cache)
    warm = measure(vit(), m.task, "probe", m.settings, seed=0, cache=cache)
    bare = measure(vit(), m.task, "probe", m.settings, seed=0)
    for found in (cold, warm):
        assert found == bare
        assert np.array_equal(found.outcomes[0].log_probabilities, bare.outcomes[0].log_probabilities)  # type: ignore[arg-type]
    rows, settings = np.arange(20), Probing(precision="fp32")
    wanted = features(vit(), m.task, m.task.examples("test").take(rows), settings)
    assert np.array_equal(cache.of(vit(), m.task, "test", rows, settings), wanted)
    for file in (tmp_path / "cache").iterdir():
        file.write_bytes(file.read_bytes()[:100])  # damaged: computed again
    assert np.array_equal(cache.of(vit(), m.task, "test", rows, settings), wanted)
    assert not np.array_equal(cache.of(vit(3), m.task, "test", rows, settings), wanted)


def classifier(names: list[str] | None = None, order: tuple[int, int] = (0, 1)) -> Memory:
    """A small BERT with a head of two classes; `order` turns its rows around."""
    from transformers import AutoConfig, BertForSequenceClassification

    settings = {k: v for k, v in BERT.items() if k != "model_type"}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = BertForSequenceClassification(AutoConfig.for_model("bert", **settings, num_labels=2)).eval()
        module.classifier.weight.data.normal_()
    state = {n: t.detach().clone() for n, t in module.state_dict().items()}
    for name in ("classifier.weight", "classifier.bias"):
        state[name] = state[name][list(order)].clone()
    config: dict[str, Any] = {**BERT, "architectures": ["BertForSequenceClassification"], "num_labels": 2}
    if names:
        config["id2label"] = {str(i): n for i, n in enumerate(names)}
    import json

    return Memory(state, files={"config.json": json.dumps(config).encode(), **tokenizer_files(types=True)})


def run(name: str, model: Memory, task: Task, **settings: Any) -> Outcomes:
    kind = {"zeroshot": ZeroshotProtocol, "perplexity": PerplexityProtocol}[name]
    from cofuse.measure.evaluation.protocols import Given

    return ALL[name][1](model, task, kind(**settings), 0, Given()).outcomes[0]


def test_zero_shot_is_the_models_own_head(tmp_path: Path) -> None:
    task = opinion_task(tmp_path / "task")
    plain = run("zeroshot", classifier(), task)
    # The slow twin: transformers, one text at a time.
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    classifier().save(tmp_path / "model")
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    test = task.examples("test")
    with torch.inference_mode():
        logits = torch.cat([theirs(**tokenizer(t, return_tensors="pt")).logits for t in test.inputs["text"]])
    assert np.allclose(plain.log_probabilities, torch.log_softmax(logits, 1).numpy(), atol=1e-5)
    assert plain.value == task.score(logits.argmax(1).numpy(), test.labels)
    # Labels that are named count by their names, in whatever order the head has them.
    turned = run("zeroshot", classifier(["Good", "BAD"], (1, 0)), task)
    assert np.array_equal(turned.predictions, plain.predictions)  # type: ignore[arg-type]
    with pytest.raises(TaskError, match="labels of the model's head"):
        run("zeroshot", classifier(["joy", "anger"]), task)
    assert label_order({"id2label": {0: "LABEL_0", 1: "LABEL_1"}}, task) == [0, 1]
    with pytest.raises(TaskError):
        run("zeroshot", bert(), task)  # no head
    with pytest.raises(TaskError):
        run("perplexity", classifier(), task)


def test_perplexity_is_exp_of_the_loss(tmp_path: Path) -> None:
    import json

    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=24, n_positions=40, n_embd=16, n_layer=1, n_head=2, bos_token_id=2, eos_token_id=3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = GPT2LMHeadModel(config).eval()
    state = {n: t.detach().clone() for n, t in theirs.state_dict().items() if n != "lm_head.weight"}
    said = {**config.to_dict(), "architectures": ["GPT2LMHeadModel"]}
    model = Memory(state, files={"config.json": json.dumps(said).encode(), **tokenizer_files()})
    task = opinion_task(tmp_path / "task")
    model.save(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    nats, tokens, texts = 0.0, 0, task.examples("test").inputs["text"]
    with torch.inference_mode():
        for text in texts:
            ids = tokenizer(text, return_tensors="pt").input_ids
            loss = theirs(input_ids=ids, labels=ids).loss
            nats, tokens = nats + float(loss) * (ids.shape[1] - 1), tokens + ids.shape[1] - 1
    per_token = run("perplexity", model, task, max_length=40)
    assert per_token.metric == "minus_nats_per_token"
    assert math.exp(-per_token.value) == pytest.approx(math.exp(nats / tokens), rel=1e-5)
    bits = run("perplexity", model, task, max_length=40, unit="bits", per="word")
    assert -bits.value == pytest.approx(nats / math.log(2) / sum(len(t.split()) for t in texts), rel=1e-5)
    with pytest.raises(TaskError, match="texts were cut"):
        run("perplexity", model, task, max_length=5, per="byte")


@pytest.mark.parametrize(("metric", "times", "least"), [("accuracy", 60, 51), ("macro_f1", 6, 4)])
def test_intervals_hold_the_true_score_as_often_as_they_say(metric: str, times: int, least: int) -> None:
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(times):
        labels = random.integers(2, size=200)
        said = np.where(random.random((3, 200)) < 0.8, labels, 1 - labels)
        low, high = spread(
            [Outcomes.predicted(s, labels, metric=metric, model="m", task="t", protocol="probe") for s in said]
        )
        hits += low <= 80 <= high
    assert hits >= least
    exact = Outcomes.predicted(labels, labels, metric=metric, model="m", task="t", protocol="probe")
    assert spread([exact, exact]) == (100.0, 100.0)


SCRIPT = """
import sys
from functools import partial
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from cofuse.checkpoint import open_local
from cofuse.measure.evaluation.evaluating import Model, evaluate
from cofuse.measure.evaluation.records import Records
from measure.suites import SUITE, opened
if __name__ == "__main__":
    model = Model.of("model", partial(open_local, Path(sys.argv[1])))
    evaluate([model], opened({**SUITE, "seeds": [0, 1, 2, 3]}), Records(Path(sys.argv[2])), jobs=1)
"""


@pytest.mark.slow
def test_a_kill_loses_nothing_that_was_made(model: Model, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    place = tmp_path / "killed"
    tests = str(Path(__file__).parents[2])
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "model"), str(place), tests]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True)
    end = time.monotonic() + 120
    while len(list(place.rglob("*.json"))) < 3 and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    suite = open_document({**SUITE, "seeds": [0, 1, 2, 3]})
    before = {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in place.rglob("*.json")}
    assert 3 <= len(before) < 16
    resumed = evaluate([model], suite, Records(place), jobs=2)
    assert resumed.made == 16 - len(before)
    after = files(place)
    assert all(after[name] == stat for name, stat in before.items())
    assert kept(resumed) == kept(evaluate([model], suite, Records(tmp_path / "whole"), jobs=2))
