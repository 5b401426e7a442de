"""YAML documents: one clear error with line and suggestion, and no document that harms."""

from __future__ import annotations

import resource
import time
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import Field, model_validator

from cofuse.document import MAX_NODES, Document, PlacedError, parse_document, read_document
from cofuse.errors import DocumentError


class Inner(Document):
    rate: float = 0.5
    kind: Literal["linear", "cosine"] = "linear"


class Outer(Document):
    name: str
    steps: int = Field(1, gt=0)
    inner: Inner = Inner()
    parts: tuple[str | Inner, ...] = ()
    extra: dict[str, Any] = Field(default_factory=dict)
    rounds: dict[int, int] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> Outer:
        if "bad" in self.extra:
            raise PlacedError(("extra", "bad"), "something else", self.extra["bad"])
        if "unkown" in self.extra:
            raise PlacedError(("extra", "unkown"), "no such key", known=["unknown"])
        return self


def refused(text: str, **changes: Any) -> DocumentError:
    with pytest.raises(DocumentError) as caught:
        parse_document(text, Outer, where="d.yaml", changes=changes)
    return caught.value


@pytest.mark.parametrize(
    ("text", "what", "where", "hint"),
    [
        ("name: x\nstpes: 3\n", 'unknown key "stpes"', "d.yaml:2", 'did you mean "steps"?'),
        ("nmae: x\n", 'unknown key "nmae"', "d.yaml:1", 'did you mean "name"?'),
        ("steps: 3\n", 'missing key "name"', "d.yaml:1", None),
        ("name: x\nsteps: 0\n", 'bad value of "steps"', "d.yaml:2", None),
        ("name: x\n\ninner:\n  # a comment\n  raet: 1\n", 'unknown key "raet"', "d.yaml:5", 'did you mean "rate"?'),
        ("name: x\ninner: {kind: linaer}\n", 'bad value of "inner.kind"', "d.yaml:2", 'did you mean "linear"?'),
        ("name: x\ninner:\n  rate: fast\n", 'bad value of "inner.rate"', "d.yaml:3", None),
        ("name: x\ninner:\n  rate: .inf\n", 'bad value of "inner.rate"', "d.yaml:3", None),
        ("name: x\ninner:\n  rate: .nan\n", 'bad value of "inner.rate"', "d.yaml:3", None),
        ("name: x\nparts:\n- a\n- rate: 1\n  knid: cosine\n", 'unknown key "knid"', "d.yaml:5", 'did you mean "kind"?'),
        ("name: x\nparts:\n- a\n- rate: 1\n  kind: cosin\n", 'bad value of "parts.1.kind"', "d.yaml:5", 'did you mean "cosine"?'),
        ("name: x\nparts:\n- a\n- 7\n", 'bad value of "parts.1"', "d.yaml:4", None),
        ("name: x\nextra:\n  bad: 7\n", 'bad value of "extra.bad"', "d.yaml:3", None),
        ("name: x\nextra:\n  unkown: 7\n", 'unknown key "unkown"', "d.yaml:3", 'did you mean "unknown"?'),
        ("name: x\nrounds:\n  3: 1\n  4: many\n", 'bad value of "rounds.4"', "d.yaml:4", None),
        ("name: [1\n", "not valid YAML", "d.yaml:2", None),
        ("name: x\nsteps: 1\nname: y\n", "not valid YAML", "d.yaml:3", None),
        ("name: x\ninner: {rate: 1, rate: 2}\n", "not valid YAML", "d.yaml:2", None),
        ("name: x\n? [1]\n: 2\n", "not valid YAML", "d.yaml:2", None),
        ("name: x\n{}: 2\n", "not valid YAML", "d.yaml:2", None),
        ("name: !!python/object/apply:os.getcwd []\n", "not valid YAML", "d.yaml:1", None),
        ("--- {name: x}\n--- {name: y}\n", "not valid YAML", "d.yaml:2", None),
        ("name: 2020-13-45\n", "not valid YAML", "d.yaml", None),
        *((f"name: !!{tag} x\n", "not valid YAML", "d.yaml", None) for tag in ("int", "bool", "timestamp")),
        ('name: !!float ""\n', "not valid YAML", "d.yaml", None),
        ("name: !!timestamp x\n", "not valid YAML", "d.yaml", None),
        (f"name: {'9' * 5000}\n", "not valid YAML", "d.yaml", None),
        ("name: \0\n", "not valid YAML", "d.yaml", None),
        ("", "a document is a mapping", "d.yaml", None),
        ("- a\n", "a document is a mapping", "d.yaml", None),
        ("7\n", "a document is a mapping", "d.yaml", None),
        ("1: 2\n", 'missing key "name"', "d.yaml:1", None),
    ],
)  # fmt: skip
def test_a_wrong_document_gives_one_error(text: str, what: str, where: str, hint: str | None) -> None:
    error = refused(text)
    assert (error.what, error.where, error.hint) == (what, where, hint)


def test_a_value_of_no_branch_is_told_what_each_wants() -> None:
    error = refused("name: x\nparts: [7]\n")
    assert error.got == "7"
    assert error.expected == "a valid string or a valid dictionary or instance of Inner"


@pytest.mark.parametrize("text", ["5e-5", "5E-5", "+5e-5", ".5e-4", "0.5e-4", "5.e-5", "0.00005"])
def test_small_numbers_are_numbers(text: str) -> None:
    data = parse_document(f"name: x\nextra: {{v: {text}}}\ninner: {{rate: {text}}}\n", Outer)
    assert data.extra["v"] == data.inner.rate == 5e-5


@pytest.mark.parametrize("text", ["1e5x", "e5", "1e", "'5e-5'"])
def test_words_stay_words(text: str) -> None:
    assert isinstance(parse_document(f"name: {text}", Outer).name, str)


def test_aliases_and_merge_keys_mean_what_yaml_says() -> None:
    text = "name: x\ninner: &i {rate: 2.0}\nparts: [*i, {<<: *i, kind: cosine}]\n"
    assert parse_document(text, Outer).parts == (Inner(rate=2.0), Inner(rate=2.0, kind="cosine"))


@pytest.mark.parametrize(
    "text",
    [
        "a0: &a0 [1,1,1,1,1,1,1,1,1]\n" + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30)),
        "a0: &a0 {k: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{','.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 30)),
        "a0: &a0 {k: 1}\n" + "".join(f"a{i}: &a{i} {{x: *a{i - 1}, y: *a{i - 1}}}\n" for i in range(1, 60)),
        "a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 3000)),
        "a: &a [*a]\n",
        "a: &a {b: {c: *a}}\n",
        "[" * 20_000,
        "a: " + "{a: " * 500 + "1" + "}" * 500,
    ],
    ids=["lists", "merges", "mappings", "chain", "itself", "deep itself", "brackets", "braces"],
)  # fmt: skip
def test_a_document_that_grows_without_end_is_refused(text: str) -> None:
    began, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    error = refused(text)
    assert error.what in ("not valid YAML", "nested too deeply")
    assert time.process_time() - began < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # KiB


def test_a_long_document_is_read() -> None:
    text = "name: x\nparts:\n" + "".join(f"- part{i}\n" for i in range(5000))
    assert len(parse_document(text, Outer).parts) == 5000 < MAX_NODES


@pytest.mark.parametrize(
    ("key", "value", "got"),
    [
        ("steps", 5, {"steps": 5}),
        ("inner.rate", 3, {"inner": Inner(rate=3.0)}),
        ("parts.1.kind", "cosine", {"parts": ("a", Inner(kind="cosine"))}),
        ("parts.0", "b", {"parts": ("b", Inner())}),
        ("extra.new.deep", 1, {"extra": {"new": {"deep": 1}}}),
        ("rounds.3", 8, {"rounds": {3: 8}}),
        ("rounds.4", 8, {"rounds": {3: 1, 4: 8}}),
    ],
)
def test_changes_are_set_by_path(key: str, value: Any, got: dict[str, Any]) -> None:
    text = "name: x\nparts: [a, {rate: 0.5}]\nrounds: {3: 1}\n"
    before = parse_document(text, Outer)
    after = parse_document(text, Outer, changes={key: value})
    for name in Outer.model_fields:
        assert getattr(after, name) == got.get(name, getattr(before, name)), name


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("parts.2", "no such element of a list"),
        ("parts.-1", "no such element of a list"),
        ("parts.x", "no such element of a list"),
        ("parts.1.5", "no such element of a list"),
        ("parts.²", "no such element of a list"),
        ("parts.0.rate", "cannot set a key inside a value"),
        ("name.x", "cannot set a key inside a value"),
        ("extra.none.x", "cannot set a key inside a value"),
        ("", "an empty key"),
        ("inner.", "an empty key"),
        ("inner..rate", "an empty key"),
        ("inner.raet", 'unknown key "raet"'),
        ("innre.rate", 'unknown key "innre"'),
    ],
)  # fmt: skip
def test_a_bad_path_is_one_error(key: str, what: str) -> None:
    assert refused("name: x\nparts: [a, [b]]\nextra: {none: null}\n", **{key: 1}).what == what


def test_a_change_leaves_what_aliases_share() -> None:
    text = "name: x\ninner: &i {rate: 2.0}\nparts: [*i]\n"
    got = parse_document(text, Outer, changes={"inner.rate": 7})
    assert (got.inner.rate, got.parts[0]) == (7.0, Inner(rate=2.0))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"name: \xff\xfe")
    for path in (tmp_path / "none", tmp_path, tmp_path / "latin"):
        with pytest.raises(DocumentError, match="cannot read the file") as caught:
            read_document(path, Outer)
        assert caught.value.where == str(path)
    (tmp_path / "good").write_text("name: é\n", encoding="utf-8")
    assert read_document(tmp_path / "good", Outer).name == "é"
