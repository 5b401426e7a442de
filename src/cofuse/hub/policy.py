"""The policy of a branch: when a round begins, how it fuses, what it must pass. YAML, see docs/formats/hub-policy.md."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from ..document import Document, PlacedError, nearest, parse_document
from ..fuse import METHODS, ModelInput, Recipe
from ..measure.gate.policy import Policy as GatePolicy

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd])")
# Methods without a base, to which one that stands beside the models is one more model.
COUNT_THE_BASE = frozenset({"linear", "karcher"})


def _seconds(value: Any) -> Any:
    found = _DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
    if isinstance(value, str) and found is None:
        raise ValueError("a time such as 7d, 12h, 30m or 45s")
    return float(found[1]) * _UNITS[found[2]] if found else value


Seconds = Annotated[float, BeforeValidator(_seconds), Field(ge=0)]


class When(Document):
    """When a round begins.

    Attributes:
        contributions: as soon as so many are open.
        longest: seconds after which fewer are enough; for ever when None.
        least: so few are.
        most: that go into one round; the oldest first.
        each: that go into one round from one account; any number when None.
    """

    contributions: int = Field(8, ge=1, le=1000)
    longest: Seconds | None = None
    least: int = Field(1, ge=1)
    most: int = Field(100, ge=1, le=1000)
    each: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _in_order(self) -> When:
        if not self.least <= self.contributions <= self.most:
            raise PlacedError(("contributions",), f"{self.least} (least) to {self.most} (most)", self.contributions)
        return self


class How(Document):
    """How contributions are fused.

    Attributes:
        method: any row of the merge methods.
        parameters: the method's.
        seed: of random masks.
    """

    method: str = "norm_clip"
    parameters: Mapping[str, Any] = Field(default_factory=dict)
    seed: int = 0

    @field_validator("method")
    @classmethod
    def _known(cls, method: str) -> str:
        if method not in METHODS:
            raise ValueError(f"a merge method; {nearest(method, METHODS)}")
        return method

    @model_validator(mode="after")
    def _fits(self) -> How:
        row = METHODS[self.method]
        unknown = next((name for name in self.parameters if name not in row.parameters), None)
        if unknown is not None:
            raise PlacedError(("parameters", unknown), "", known=tuple(row.parameters))
        if row.statistics and self.parameters.get("normalize_by", row.parameters["normalize_by"].default) == "none":
            # A Fisher that somebody multiplies by a billion must not own a fuse.
            raise PlacedError(("parameters", "normalize_by"), "mean: contributors send their own statistics", "none")
        models = [
            ModelInput(model=str(i), statistics=dict.fromkeys(row.statistics, f"s{i}")) for i in range(self.least)
        ]
        base = "base" if row.needs_base or (row.needs_base is None and self.method not in COUNT_THE_BASE) else None
        try:
            Recipe(
                merge_method=self.method,
                models=tuple(models),
                base_model=base,
                parameters=dict(self.parameters),
                seed=self.seed,
            )
        except ValidationError as error:
            said = str(error.errors()[-1]["msg"]).removeprefix("Value error, ")
            raise PlacedError(("parameters",), said, dict(self.parameters)) from None
        return self

    @property
    def least(self) -> int:
        """Models that the method needs."""
        return METHODS[self.method].models[0]

    @property
    def most(self) -> int | None:
        """Models that it takes at most."""
        return METHODS[self.method].models[1]


class Weights(Document):
    """What contributions weigh, where the method has weights; the server's word, not the contributors'.

    Attributes:
        by: `equal`, or `examples`: as many as a contributor says that it trained on.
        cap: times the median that a contribution may weigh, and that all those of one account may weigh together.
    """

    by: Literal["equal", "examples"] = "equal"
    cap: float = Field(2.0, ge=1)


class Screen(Document):
    """What becomes of a contribution that is sound but strange: `refuse`, `warn` (a maintainer looks) or `skip`.

    Attributes:
        norm: its change is so many times longer than the median of its peers': `norm_factor`. Shorter is only told.
        direction: its change points away from the mean of its peers': its cosine is below `cosine`.
        predicted: it is predicted to do so many robust deviations more or less than its peers: `deviations`.
        evaluation: it scores so many points less than its base on the repository's suite: `points`.
        peers: fewer than so many others say nothing.
    """

    norm: Literal["skip", "warn", "refuse"] = "refuse"
    norm_factor: float = Field(5.0, gt=1)
    direction: Literal["skip", "warn", "refuse"] = "warn"
    cosine: float = Field(-0.05, ge=-1, le=1)
    predicted: Literal["skip", "warn", "refuse"] = "warn"
    deviations: float = Field(6.0, gt=0)
    evaluation: Literal["skip", "warn", "refuse"] = "warn"
    points: float = Field(5.0, gt=0)
    peers: int = Field(2, ge=1)


class Gate(Document):
    """What a release must pass; it is judged on the repository's suite, against the branch's tip.

    Attributes:
        policy: what it may cost; see docs/formats/policy.md.
        on_block: `hold`: the round comes to nothing and the branch waits for a maintainer; `ask`: the round waits for a
            maintainer's decision; `drop_worst`: the contribution without which the fuse scores best is left out, and the
            others are fused again.
        on_undecided: the same, or `publish`.
        tries: rounds of `drop_worst`, after which a maintainer is asked.
        rapid: stop as soon as the decision is clear.
    """

    policy: GatePolicy = GatePolicy()
    on_block: Literal["hold", "drop_worst", "ask"] = "ask"
    on_undecided: Literal["hold", "drop_worst", "ask", "publish"] = "ask"
    tries: int = Field(2, ge=1, le=20)
    rapid: bool = False


class BranchPolicy(Document):
    """A branch's policy; the empty document is the default one.

    `review: accept` takes only contributions that a maintainer has accepted.

    >>> BranchPolicy().fuse.method, read_policy("round: {contributions: 3, longest: 7d}").round.longest
    ('norm_clip', 604800.0)
    """

    round: When = When()
    fuse: How = How()
    weights: Weights = Weights()
    screen: Screen = Screen()
    gate: Gate = Gate()
    review: Literal["none", "accept"] = "none"

    @model_validator(mode="after")
    def _enough(self) -> BranchPolicy:
        if self.round.contributions < self.fuse.least:
            said = f"at least {self.fuse.least}, which {self.fuse.method} needs"
            raise PlacedError(("round", "contributions"), said, self.round.contributions)
        if self.fuse.most is not None and self.round.contributions > self.fuse.most:
            said = f"at most {self.fuse.most}, which {self.fuse.method} takes"
            raise PlacedError(("round", "contributions"), said, self.round.contributions)
        return self

    @property
    def least(self) -> int:
        """Contributions without which there is no round."""
        return max(self.round.least, self.fuse.least)

    @property
    def most(self) -> int:
        """Contributions that go into one round."""
        return min(self.round.most, self.fuse.most or self.round.most)


def read_policy(text: str) -> BranchPolicy:
    """A policy from its YAML.

    Raises:
        DocumentError: it is wrong; names the line.
    """
    return parse_document(text if text.strip() else "{}", BranchPolicy, where="policy")
