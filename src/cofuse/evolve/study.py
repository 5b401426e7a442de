"""A study: what evolves, on which tasks, by whom, how it is fused and measured. One YAML document."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from ..checkpoint import open_local
from ..document import Document, PlacedError, nearest, read_document
from ..errors import StudyError
from ..fuse import METHODS
from ..fuse.recipe import Value, check_parameter
from ..measure.evaluation.protocols import Evaluation
from ..tasks import Task, open_suite
from ..tasks.finetune import Finetuning
from ..tasks.pretrain import Pretraining
from .screen import Peers


class Fusing(Document):
    """How contributions become the next base: a merge method and its parameters; all models weigh the same."""

    method: str = "linear"
    parameters: dict[str, Value] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _known(self) -> Fusing:
        if self.method not in METHODS:
            raise ValueError(f"a merge method; {nearest(self.method, METHODS)}")
        if METHODS[self.method].statistics:
            raise PlacedError(
                ("method",), "a method that sees weights alone: contributions bring no statistics", self.method
            )
        for name, value in self.parameters.items():
            known = METHODS[self.method].parameters
            try:
                check_parameter(name, value, known, per_model=False)
            except ValueError as error:
                unknown = tuple(known) if name not in known else None
                raise PlacedError(("parameters", name), str(error), value, known=unknown) from None
        return self


class Screening(Document):
    """A contribution is refused whose change is predicted to do far more, or far less, than those of its round.

    What a change does is predicted by statistics of the study's base. Later bases differ from it, but so they do for
    all contributions of a round, which are compared with each other alone.
    """

    fisher: Path  # a folder of statistics, as `cofuse fisher` writes it
    threshold: float = Field(6.0, gt=0)  # robust standard deviations of the logarithm


class Baselines(Document):
    """What the evolving base is compared with, besides the pretrained one.

    Every seen task's finetuned model is made once: by itself it is one-task intertraining, all of them together are
    fused once.
    """

    steps: int | None = Field(None, gt=0)  # that a model trains alone; as many as a contributor takes in all rounds
    intertrain: tuple[Literal["finetune", "probe", "fewshot", "oldhead"], ...] = ()  # protocols, on unseen tasks
    fuse_once: bool = False
    multitask: int | None = Field(None, gt=0)  # steps of multitask finetuning, all tasks together

    @property
    def wants_alone(self) -> bool:
        """Whether models that train alone are needed."""
        return bool(self.intertrain) or self.fuse_once


class Study(Document):
    """A study of ColD Fusion."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]*$")
    base: str | Pretraining  # an address, or a pretraining stage of its own
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    tasks: Path | None = None  # folder in which names of tasks are looked for
    seen: tuple[str | Task, ...] = Field(min_length=1)
    unseen: tuple[str | Task, ...] = ()
    rounds: int = Field(gt=0)
    contributors: int | None = Field(None, gt=0)  # one a seen task when not given; they take the tasks in turn
    per_round: int | None = Field(None, gt=0)  # contributors drawn for each round; all when not given
    examples: int | None = Field(None, gt=0)  # that each contributor has
    fresh: bool = False  # contributors draw new examples each round
    finetune: Finetuning
    fuse: Fusing = Fusing()
    screen: Screening | None = None
    offers: dict[int, tuple[Path, ...]] = Field(default_factory=dict)  # round -> folders of outside contributions
    evaluate_seen: Evaluation = Evaluation()
    evaluate_unseen: Evaluation = Evaluation()
    baselines: Baselines = Baselines()
    threads: int = Field(1, gt=0)  # of each process; part of the result, because sums depend on it
    keep_contributions: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> Study:
        if len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise PlacedError(("seeds",), "different whole numbers from 0", list(self.seeds))
        if self.per_round is not None and self.per_round > self.people:
            raise PlacedError(("per_round",), f"at most the number of contributors, {self.people}", self.per_round)
        for number in self.offers:
            if not 1 <= number <= self.rounds:
                raise PlacedError(("offers", number), f"a round, 1 to {self.rounds}", number)
        measured = self.evaluate_unseen.chosen()
        for name in self.baselines.intertrain:
            if name not in measured:
                raise PlacedError(("baselines", "intertrain"), 'protocols that "evaluate_unseen" has', name)
        return self

    @property
    def people(self) -> int:
        """Number of contributors."""
        return self.contributors or len(self.seen)

    @property
    def alone(self) -> Finetuning:
        """How a baseline model trains alone: as a contributor does, for as many steps as one takes in all rounds."""
        steps = self.baselines.steps
        if steps is None and self.finetune.steps is not None:
            steps = self.finetune.steps * self.rounds
        return self.finetune if steps is None else self.finetune.model_copy(update={"steps": steps, "epochs": None})

    @property
    def together(self) -> Finetuning | None:
        """How the multitask baseline trains, where it is wanted."""
        steps = self.baselines.multitask
        return None if steps is None else self.finetune.model_copy(update={"steps": steps, "epochs": None})


class OpenStudy:
    """A study with its tasks opened.

    Raises:
        TaskError: a task is unknown.
        CheckpointError: the statistics for screening cannot be read.
        StudyError: a task is both seen and unseen.
    """

    def __init__(self, study: Study, folder: Path) -> None:
        self.study = study
        self.folder = folder
        folders = (*([folder / study.tasks] if study.tasks is not None else []), folder)
        self.seen = open_suite(study.seen, folders=folders)
        self.unseen = open_suite(study.unseen, folders=folders)
        self.peers = (
            None if study.screen is None else Peers(open_local(folder / study.screen.fisher), study.screen.threshold)
        )
        both = {t.name for t in self.seen} & {t.name for t in self.unseen}
        if both:
            raise StudyError("a task is both seen and unseen", where=study.name, got=", ".join(sorted(both)))


def read_study(path: Path, changes: dict[str, Any] | None = None) -> OpenStudy:
    """Read a study and open its tasks; relative paths in it count from its folder.

    Raises:
        DocumentError: the YAML is wrong; with its line and a suggestion.
        TaskError: a task is unknown.
    """
    return OpenStudy(read_document(path, Study, changes), path.resolve().parent)
