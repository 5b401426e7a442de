"""Suites: what decides a score is in the hash, what does not is not; and the suites that come with the package."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tasks.tiny import opinion_task

from cofuse.errors import CofuseError, DocumentError, SuiteError
from cofuse.measure.evaluation.suite import UNPINNED, builtin, differences, open_suite, read_suite
from measure.suites import SUITE, opened


def changed(path: str, value: Any) -> dict[str, Any]:
    document = copy.deepcopy(SUITE)
    place: Any = document
    *keys, last = path.split(".")
    for key in keys:
        place = place[int(key)] if isinstance(place, list) else place[key]
    place[int(last) if isinstance(place, list) else last] = value
    return document


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("seeds", [0, 2]),
        ("seeds", [0]),
        ("threads", 2),
        ("only", {"probe": ["even"]}),
        ("protocols.probe.examples", 31),
        ("protocols.probe.test", 51),
        ("protocols.probe.probing.c", 0.5),
        ("protocols.finetune.finetuning.steps", 3),
        ("protocols.finetune.finetuning.weight_decay", 0.5),
        ("protocols.zeroshot", {}),
        ("tasks.0.name", "odd"),
        ("tasks.0.metric", "macro_f1"),
        ("tasks.0.data.groups", [[1, 3], [0, 4]]),
        ("tasks.0.labels", ["no", "yes"]),
    ],
)
def test_what_decides_a_score_changes_the_hash(path: str, value: Any) -> None:
    one, other = opened(SUITE), opened(changed(path, value))
    assert one.hash != other.hash
    assert differences(one.document(), other.document())
    assert differences(other.document(), one.document())


def shuffled(value: Any, random: Any) -> Any:
    """The same document, the keys of every mapping in another order."""
    if isinstance(value, dict):
        keys = list(value)
        random.shuffle(keys)
        return {k: shuffled(value[k], random) for k in keys}
    return [shuffled(v, random) for v in value] if isinstance(value, list) else value


@given(st.randoms(use_true_random=False))
def test_what_decides_nothing_does_not(random: Any) -> None:
    document = shuffled(SUITE, random)
    random.shuffle(document["tasks"])
    random.shuffle(document["seeds"])
    document["name"] = "another"
    again = opened(yaml.safe_load(yaml.safe_dump(document, sort_keys=False)))
    assert again.hash == opened(SUITE).hash
    assert differences(again.document(), opened(SUITE).document()) == []


def test_defaults_that_are_written_out_change_nothing() -> None:
    assert opened(changed("protocols.probe.probing", {"precision": "fp32", "c": 1.0})).hash == opened(SUITE).hash


def test_the_data_is_in_the_hash_and_its_folder_is_not(tmp_path: Path) -> None:
    hashes = []
    for name, sizes in (("here", (64, 32, 48)), ("there", (64, 32, 48)), ("longer", (65, 32, 48))):
        opinion_task(tmp_path / name / "opinions", sizes)
        suite, folder = read_suite(str(tmp_path / name))
        hashes.append(open_suite(suite, [folder]).hash)
    assert hashes[0] == hashes[1] != hashes[2]


def test_measures_say_which_seeds_they_need() -> None:
    suite = opened(changed("protocols.probe.examples", None))
    seeds = {m.protocol: suite.seeds_of(m) for m in suite.measures}
    assert seeds == {"probe": (0,), "finetune": (0, 1)}  # all examples are the same for every seed


def test_only_what_is_asked_for() -> None:
    one = opened(SUITE, protocols=["probe"], tasks=["even"])
    assert [(m.task.name, m.protocol) for m in one.measures] == [("even", "probe")]
    assert differences(opened(SUITE).document(), one.document()) == [
        "even, finetune: only in the first",
        "small, finetune: only in the first",
        "small, probe: only in the first",
    ]
    both = opened(SUITE, protocols=["probe", "fewshot"])  # one that the suite does not have: its defaults
    assert {m.protocol for m in both.measures} == {"probe", "fewshot"}


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("seeds", [1, 1], "seeds"),
        ("seeds", [-1], "seeds"),
        ("only", {"porbe": ["even"]}, "probe"),
        ("protocols", {"porbe": {}}, "probe"),
        ("protocols.probe.draws", 3, "a suite draws once a seed"),
        ("protocols.probe.every", 2, "a suite draws once a seed"),
        ("protocols.zeroshot", {"examples": 3}, "trains on no examples"),
        ("tasks", [], "at least one task"),
        ("include", "cold63", "cold36"),
    ],
)
def test_a_wrong_suite_is_refused_with_its_line(tmp_path: Path, path: str, value: Any, said: str) -> None:
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(changed(path, value), sort_keys=False))
    with pytest.raises(DocumentError, match=r"s\.yaml:\d+") as error:
        read_suite(str(tmp_path / "s.yaml"))
    assert said in str(error.value)


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    for options in ({"tasks": ["evne"]}, {"protocols": ["porbe"]}, {"pins": {"even": "0" * 40}}):
        with pytest.raises(SuiteError):
            opened(SUITE, **options)
    for address in ("cold63", str(tmp_path)):
        with pytest.raises(SuiteError):
            read_suite(address)


def test_the_36_data_sets_of_cold_fusion() -> None:
    suite, folder = read_suite("cold36")
    names = [t.name for t in suite.tasks if not isinstance(t, str)] + [r.name for r in suite.retired]
    assert len(set(names)) == len(names) == 36
    assert {r.name for r in suite.retired} == {"amazon_reviews_multi", "isear"}
    assert all(r.reason for r in suite.retired)
    with pytest.raises(SuiteError, match="revisions are not pinned") as loose:
        open_suite(suite, [folder])
    unpinned = {t.data.id for t in suite.tasks if t.data.revision == UNPINNED}  # type: ignore[union-attr]
    assert all(data in str(loose.value) for data in unpinned)
    whole = open_suite(suite, [folder], pins=dict.fromkeys(unpinned, "a" * 40))
    assert all(len(t.data.revision) == 40 for t in whole.tasks)  # type: ignore[union-attr]
    other = open_suite(suite, [folder], pins=dict.fromkeys(unpinned, "b" * 40))
    assert whole.hash != other.hash
    with pytest.raises(SuiteError, match="not a pin"):
        open_suite(suite, [folder], pins={**dict.fromkeys(unpinned, "a" * 40), "facebook/anli": "main"})


def test_model_recycling_probes_mnli_and_finetunes_all() -> None:
    suite, folder = read_suite("model-recycling")
    probes = open_suite(suite, [folder], protocols=["probe"])  # needs no pin: MNLI has one
    assert [(m.task.name, m.settings.examples) for m in probes.measures] == [("mnli", None)]
    assert suite.protocols.finetune is not None
    said = suite.protocols.finetune.finetuning
    assert (said.learning_rate, said.batch_size, said.epochs, said.weight_decay) == (5e-5, 256, 10, 0.01)
    assert set(builtin()) == {"cold36", "model-recycling"}


def test_errors_are_of_the_tree() -> None:
    assert issubclass(SuiteError, CofuseError)
