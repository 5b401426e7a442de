"""A suite: which tasks are measured by which protocols, so pinned that two scores of it can be compared.

What decides a score is hashed: the data, the protocol's settings, the seeds, the threads. Names and the order of keys
decide nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, model_validator

from ...canonical import digest
from ...document import Document, PlacedError, nearest, parse_document, read_document
from ...errors import SuiteError
from ...tasks import Suite as Tasks
from ...tasks import Task
from ...tasks import open_suite as open_tasks
from ...tasks.sources import Hub
from .as_is import ALL, PerplexityProtocol, WholeProtocol, ZeroshotProtocol
from .protocols import Evaluation, Protocol

# What stands in a suite for a revision that nobody has pinned yet.
UNPINNED = "unpinned"
_COMMIT = re.compile(r"[0-9a-f]{40}")

# Settings where a suite names none: what tells most in a minute a task on two cores.
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "probe": {"examples": 1000, "test": 1000, "probing": {"standardize": True, "c": 0.01}},
    "oldhead": {"examples": 1000, "test": 1000, "probing": {"standardize": True, "c": 0.01}},
    "fewshot": {"examples": 100, "test": 1000, "finetuning": {"epochs": 10, "batch_size": 16}},
    "finetune": {"finetuning": {"epochs": 3, "batch_size": 32}},
    "zeroshot": {},
    "perplexity": {},
}


class Protocols(Evaluation):
    """The protocols of a suite and their settings."""

    zeroshot: ZeroshotProtocol | None = None
    perplexity: PerplexityProtocol | None = None

    def chosen(self) -> dict[str, Protocol]:
        """The protocols that are given, by name; one draw a seed."""
        found = {name: getattr(self, name) for name in ALL}
        return {name: p.model_copy(update={"draws": 1, "every": 1}) for name, p in found.items() if p is not None}

    @model_validator(mode="after")
    def _draws_are_seeds(self) -> Protocols:
        for name in ALL:
            for key in ("draws", "every"):
                if (settings := getattr(self, name)) is not None and key in settings.model_fields_set:
                    raise PlacedError((name, key), "nothing: a suite draws once a seed", getattr(settings, key))
        return self


class Retired(Document):
    """A data set that a suite would have, and why it has it no more."""

    name: str
    id: str
    reason: str


class Suite(Tasks):
    """A suite as it is written."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]*$")
    tasks: tuple[str | Task, ...] = ()
    include: str | None = None  # a suite that comes with Cofuse, whose tasks come before these
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    threads: int = Field(1, gt=0)  # of each process; part of the result, because sums depend on it
    protocols: Protocols = Protocols.model_validate({"probe": DEFAULTS["probe"]})
    only: dict[str, tuple[str, ...]] = Field(default_factory=dict)  # protocol -> the tasks it is for; all by default
    retired: tuple[Retired, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Suite:
        if len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise PlacedError(("seeds",), "different whole numbers from 0", list(self.seeds))
        if not self.tasks and self.include is None:
            raise PlacedError(("tasks",), "at least one task")
        if self.include is not None and self.include not in builtin():
            raise PlacedError(("include",), f"a suite of Cofuse; {nearest(self.include, builtin())}", self.include)
        for name in self.only:
            if name not in ALL:
                raise PlacedError(("only", name), f"a protocol; {nearest(name, ALL)}", name, known=tuple(ALL))
        return self


@dataclass(frozen=True)
class Measure:
    """One task by one protocol."""

    task: Task
    protocol: str
    settings: Protocol
    threads: int

    @cached_property
    def id(self) -> str:
        """A hash of all that decides a score, but the model and the seed."""
        return digest("measure", **self.document())

    @property
    def metric(self) -> str:
        """What a score is."""
        return self.settings.metric if isinstance(self.settings, PerplexityProtocol) else self.task.score_name

    @property
    def seeded(self) -> bool:
        """Whether seeds make a difference: a probe on all examples, or a model as it is, gives one score."""
        drawn = self.protocol in ("finetune", "fewshot") or self.settings.examples is not None
        return drawn and not isinstance(self.settings, WholeProtocol)

    def document(self) -> dict[str, Any]:
        """What is hashed."""
        settings = self.settings.model_dump(mode="json", exclude={"every", "draws"})
        return {"task": self.task.id, "protocol": self.protocol, "settings": settings, "threads": self.threads}


@dataclass(frozen=True)
class OpenSuite:
    """A suite with its tasks opened and pinned."""

    name: str
    seeds: tuple[int, ...]
    measures: tuple[Measure, ...]
    retired: tuple[Retired, ...] = ()

    @cached_property
    def hash(self) -> str:
        """Two scores of suites can be compared when this agrees."""
        return digest("suite", measures=sorted(m.id for m in self.measures), seeds=sorted(self.seeds))

    @property
    def tasks(self) -> tuple[Task, ...]:
        """Its tasks, each once."""
        return tuple({m.task.name: m.task for m in self.measures}.values())

    def seeds_of(self, measure: Measure) -> tuple[int, ...]:
        """The seeds that a measure is repeated with."""
        return self.seeds if measure.seeded else self.seeds[:1]

    def document(self) -> dict[str, Any]:
        """What a run writes down of its suite; without folders, which say nothing to anybody else."""
        return {
            "name": self.name,
            "hash": self.hash,
            "seeds": list(self.seeds),
            "measures": [{"id": m.id, "name": m.task.name, "metric": m.metric, **m.document()} for m in self.measures],
            "tasks": {
                t.name: t.model_dump(mode="json", exclude={"data": {"folder"}}) | {"id": t.id} for t in self.tasks
            },
            "retired": [r.model_dump(mode="json") for r in self.retired],
        }


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Why scores of two suites cannot be compared, a line each; none when they can.

    Args:
        one: a suite's `document()`.
        other: another's.

    >>> differences({"hash": "a", "seeds": [0], "measures": []}, {"hash": "b", "seeds": [0, 1], "measures": []})
    ['seeds: 0 and 0, 1']
    """
    if one["hash"] == other["hash"]:
        return []
    found = []
    if sorted(one["seeds"]) != sorted(other["seeds"]):
        found.append(f"seeds: {', '.join(map(str, one['seeds']))} and {', '.join(map(str, other['seeds']))}")
    left, right = ({(m["name"], m["protocol"]): m for m in d["measures"]} for d in (one, other))
    for name, protocol in sorted({*left, *right}):
        a, b = left.get((name, protocol)), right.get((name, protocol))
        if a is None or b is None:
            found.append(f"{name}, {protocol}: only in {'the second' if a is None else 'the first'}")
        elif a["id"] != b["id"]:
            what = [k for k in ("task", "settings", "threads") if a[k] != b[k]]
            found.append(f"{name}, {protocol}: other {' and '.join('data' if k == 'task' else k for k in what)}")
    return found


def builtin() -> dict[str, Path]:
    """The suites that come with Cofuse, by name."""
    folder = Path(str(files("cofuse.tasks"))) / "suites"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def read_suite(address: str, changes: Mapping[str, Any] | None = None) -> tuple[Suite, Path]:
    """A suite by its address, and the folder that its tasks are looked for in.

    Args:
        address: a YAML file, a folder of tasks, or the name of a suite that comes with Cofuse.
        changes: values to set, by dotted key.

    Raises:
        SuiteError: there is no such suite, or the folder holds no task.
        DocumentError: its YAML is wrong.
    """
    path = Path(address)
    if path.is_dir() and (path / "suite.yaml").is_file():
        path = path / "suite.yaml"
    if path.is_dir():
        names = sorted(p.parent.name for what in ("task.json", "task.yaml") for p in path.glob(f"*/{what}"))
        if not names:
            raise SuiteError("no tasks in the folder", where=path, expected="folders with a task.json")
        stem = re.sub(r"[^A-Za-z0-9_.\-]", "-", path.absolute().name).lstrip("_.-") or "tasks"
        text = yaml.safe_dump({"name": stem, "tasks": sorted(set(names))})
        return parse_document(text, Suite, where=address, changes=changes), path
    known = builtin()
    if path.is_file() or address in known:
        at = path if path.is_file() else known[address]
        return _with_included(read_document(at, Suite, changes)), at.parent
    raise SuiteError(
        "no such suite", got=address, expected="a YAML file, or a folder of tasks", hint=nearest(address, known)
    )


def _with_included(suite: Suite) -> Suite:
    if suite.include is None:
        return suite
    other = _with_included(read_document(builtin()[suite.include], Suite))
    both = {"tasks": (*other.tasks, *suite.tasks), "retired": (*other.retired, *suite.retired)}
    return suite.model_copy(update=both)


def open_suite(
    suite: Suite,
    folders: Sequence[Path],
    *,
    pins: Mapping[str, str] | None = None,
    protocols: Sequence[str] = (),
    tasks: Sequence[str] = (),
) -> OpenSuite:
    """Open a suite's tasks and pin their revisions.

    Args:
        suite: as it is written.
        folders: where tasks are looked for.
        pins: revisions of hub data sets, by task or data set.
        protocols: only these; with default settings those that the suite does not have.
        tasks: only these.

    Raises:
        TaskError: a task is unknown.
        SuiteError: a name is unknown, a revision is not pinned, or nothing is left to measure.
    """
    opened = open_tasks(suite.tasks, folders=tuple(folders))
    names = [t.name for t in opened]
    for name in {*tasks, *(t for wanted in suite.only.values() for t in wanted)} - set(names):
        raise SuiteError("no such task in the suite", where=suite.name, got=name, hint=nearest(name, names))
    kept = [_pinned(t, pins or {}) for t in opened if not tasks or t.name in tasks]
    chosen = suite.protocols.chosen()
    for name in protocols:
        if name not in ALL:
            raise SuiteError("no such protocol", got=name, hint=nearest(name, ALL))
        chosen.setdefault(name, Protocols.model_validate({name: DEFAULTS[name]}).chosen()[name])
    measures = tuple(
        Measure(task, name, settings, suite.threads)
        for task in kept
        for name, settings in chosen.items()
        if (not protocols or name in protocols) and task.name in suite.only.get(name, names)
    )
    if not measures:
        raise SuiteError("nothing to measure", where=suite.name, hint='its "only" leaves no task to these protocols')
    _check_pins(opened, [m.task for m in measures], suite.name, pins or {})
    return OpenSuite(suite.name, suite.seeds, measures, suite.retired)


def _pinned(task: Task, pins: Mapping[str, str]) -> Task:
    if not isinstance(task.data, Hub):
        return task
    pin = pins.get(task.name, pins.get(task.data.id, task.data.revision))
    return task.model_copy(update={"data": task.data.model_copy(update={"revision": pin})})


def _check_pins(opened: Sequence[Task], measured: Sequence[Task], where: str, pins: Mapping[str, str]) -> None:
    known = {key for t in opened if isinstance(t.data, Hub) for key in (t.name, t.data.id)}
    for name, pin in pins.items():
        if name not in known or not _COMMIT.fullmatch(pin):
            raise SuiteError(
                "not a pin of this suite",
                where=where,
                got=f"{name}={pin}",
                expected="a task or data set of the hub, and a commit of 40 hexadecimal digits",
            )
    loose = {t.data.id: t.name for t in measured if isinstance(t.data, Hub) and t.data.revision == UNPINNED}
    if loose:
        first = next(iter(loose))
        raise SuiteError(
            "revisions are not pinned",
            where=where,
            got=", ".join(f"{name} ({data})" for data, name in loose.items()),
            hint=f"say which: --pin {first}=COMMIT, from https://huggingface.co/datasets/{first}/commits/main",
        )
