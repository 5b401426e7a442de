"""A community that could be real: three models, eight releases with scores, forty contributions, a round that is held, a
revocation. Rows and stores as the hub itself would have written them; the same each time, but for when it happened."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session as Transaction

from cofuse.hub.access.roles import Role
from cofuse.hub.access.tokens import make_account, make_token
from cofuse.hub.database import (
    Account,
    Audit,
    Branch,
    Check,
    Comment,
    Contribution,
    Grant,
    Job,
    Member,
    Release,
    Repository,
    Round,
    Share,
)
from cofuse.hub.hub import Hub
from cofuse.hub.repositories import store_folder
from cofuse.hub.suites import suite_hash
from cofuse.store import Store

from .measured import TASKS, add_scores, changes, verdict, weights

HOUR, DAY = 3600.0, 86400.0
SUITE = "name: sentences\ntasks: [sst2, cola, mrpc, rte, stsb]\n"
OTHER_SUITE = "name: emotions\ntasks: [emotion, irony]\n"
POLICY = """round:
  contributions: 8
  longest: 7d
fuse:
  method: norm_clip
gate:
  on_block: ask
screen:
  cosine: -0.05
"""
CARD = """---
license: apache-2.0
language: en
pipeline_tag: sentence-similarity
tags: [sentence-transformers, evolving]
---

# MiniLM, evolving

A small sentence encoder that a community evolves. Each release is a **fuse** of what contributors finetuned
on data that they kept; see the [policy](https://example.org/policy) for how.

## What it is good for

| task | before | now |
|---|---:|---:|
| sst2 | 86.1 | 90.3 |
| cola | 38.0 | 44.9 |
| rte | 57.8 | 64.2 |

```python
from transformers import AutoModel
model = AutoModel.from_pretrained("open-lab/minilm-evolving")
```

> Weights can leak what they were trained on. Do not contribute what was trained on secrets.

![how it went](https://example.org/progress.png)
"""
# Who, what on, how they call it.
WORK = (
    ("grace", "SST-2 and movie reviews", "Film reviews, three epochs"),
    ("linus", "CoLA, and 9k sentences by linguists", "Grammaticality, low learning rate"),
    ("yuki", "Japanese-English sentence pairs, mined at our library", "Library catalogue pairs"),
    ("omar", "RTE and our own 4k entailment pairs", "Entailment from support tickets"),
    ("ines", "STS-B; similarity of museum labels", "Museum labels"),
    ("tomas", "MRPC paraphrases", "Paraphrases with hard negatives"),
    ("mallory", "a mix", "Improved everything"),
)


@dataclass
class Village:
    """What the tests need to know of it.

    Attributes:
        tokens: a secret by name: ada maintains, grace contributes, root administers, omar reads.
        name: of the model with most to see, owner/name.
        held: number of its round that waits for a decision.
    """

    tokens: dict[str, str] = field(default_factory=dict)
    name: str = "open-lab/minilm-evolving"
    held: int = 9


def settle(hub: Hub, folder: Path) -> Village:
    """Put the village into a hub.

    Args:
        hub: an empty one.
        folder: for files on their way into stores.
    """
    village, now = Village(), time.time()
    with hub.database.writing() as t:
        people = {name: make_account(t, name, role) for name, role in _people().items()}
        for one in people.values():
            one.created = now - 200 * DAY
        lab = make_account(t, "open-lab", Role.READ, organisation=True)
        lab.created, lab.quota = now - 190 * DAY, 50 * 1024**3
        t.add_all([Member(organisation_id=lab.id, account_id=people["ada"].id, role="maintain")])
        t.add_all([Member(organisation_id=lab.id, account_id=people["grace"].id, role="contribute")])
        for name in ("ada", "grace", "root", "omar"):
            role = Role.of(people[name].role)
            village.tokens[name] = make_token(t, people[name], role, label="laptop")[1]
        make_token(t, people["ada"], Role.READ, label="the demo on the website", days=90)
        old = make_token(t, people["ada"], Role.CONTRIBUTE, label="lost in a train")[0]
        old.revoked = now - 12 * DAY
        main = _repository(
            t,
            hub,
            lab,
            "minilm-evolving",
            SUITE,
            now - 180 * DAY,
            41_213,
            "A small sentence encoder that evolves: finetuned by many, fused every week, for search and clustering in English.",
        )
        second = _repository(
            t,
            hub,
            people["grace"],
            "roberta-multilingual",
            SUITE,
            now - 60 * DAY,
            1_940,
            "RoBERTa for the languages of our neighbours; contributions in any of them are welcome.",
        )
        third = _repository(
            t,
            hub,
            people["yuki"],
            "emotion-tiny",
            OTHER_SUITE,
            now - 30 * DAY,
            12,
            "Emotions in short messages. Not public yet.",
        )
        third.private = True
        t.add(Grant(repository_id=main.id, account_id=people["linus"].id, role="maintain"))
        _Evolving(t, Store.open(store_folder(hub.repositories, main.key)), main, people, now, folder).live()
        for one, versions, level in ((second, 3, 64.0), (third, 2, 55.0)):
            _grown(t, Store.open(store_folder(hub.repositories, one.key)), one, versions, level, now, folder)
        main.updated = now - 2 * HOUR
    return village


def _people() -> dict[str, Role]:
    given = {"root": Role.ADMIN, "ada": Role.MAINTAIN, "omar": Role.READ}
    return {**given, **{who: given.get(who, Role.CONTRIBUTE) for who, _, _ in WORK}}


def _repository(
    t: Transaction, hub: Hub, owner: Account, name: str, suite: str, at: float, downloads: int, description: str
) -> Repository:
    made = Repository(
        owner_id=owner.id,
        name=name,
        key=hashlib.sha256(name.encode()).hexdigest()[:32],
        description=description,
        suite=suite,
        suite_hash=suite_hash(suite),
        created=at,
        updated=at + 20 * DAY,
        downloads=downloads,
        bytes=740_000_000,
    )
    made.owner = owner
    t.add(made)
    t.flush()
    Store.init(store_folder(hub.repositories, made.key))
    return made


class _Evolving:
    """The life of the first model."""

    def __init__(
        self,
        t: Transaction,
        store: Store,
        repository: Repository,
        people: Mapping[str, Account],
        now: float,
        folder: Path,
    ) -> None:
        self.t, self.store, self.repository, self.people, self.now = t, store, repository, people, now
        self.folder, self.draw, self.number = folder, random.Random(7), 0
        self.level = dict.fromkeys(TASKS, 0.0)
        self.tip = ""
        self.rounds: list[Round] = []

    def live(self) -> None:
        """From the first version to now."""
        self.t.add(Branch(repository_id=self.repository.id, name="main", policy=POLICY, updated=self.now - 90 * DAY))
        self.tip = self.version("the base, as it was published", "v0.1.0")
        self.release("v0.1.0", None, self.now - 170 * DAY)
        sizes = (4, 5, 5, 3, 5, 5)
        for i, size in enumerate(sizes, 1):
            at = self.now - (170 - 24 * i) * DAY
            given = [self.contribution(at - self.draw.uniform(1, 9) * DAY, "fused") for _ in range(size)]
            if i == 4:
                self.came_to_nothing(given, at)
            else:
                self.round(given, at, dropped=given[2] if i == 3 else None)
        self.revoke(self.now - 20 * DAY)
        self.round([self.contribution(self.now - 10 * DAY, "fused") for _ in range(3)], self.now - 9 * DAY)
        self.refused()
        self.hold([self.contribution(self.now - 3 * DAY, "fusing") for _ in range(4)], self.now - 5 * HOUR)
        for i in range(39 - self.number):
            self.contribution(self.now - (20 - 6 * i) * HOUR, "open" if i else "withdrawn")
        waiting = self.contribution(self.now - 600, "received", checked=False)
        for kind, key, state, error in (
            ("screen", f"screen:{waiting.id}", "running", ""),
            (
                "evaluate",
                "evaluate:x:y",
                "failed",
                "the folder of tasks cannot be read\n  where: sst2\n  to do: set tasks in the hub's settings",
            ),
            ("fuse", "fuse:1:1", "done", ""),
        ):
            self.t.add(
                Job(
                    kind=kind,
                    key=key,
                    repository_id=self.repository.id,
                    payload={},
                    state=state,
                    ready=self.now - 400,
                    attempts=3 if error else 1,
                    worker="hub-1" if state == "running" else "",
                    error=error,
                    created=self.now - 400,
                    updated=self.now - 200,
                    progress="finite: 41 of 103 tensors" if state == "running" else "",
                )
            )
        for i, (who, action, target) in enumerate(
            (
                ("root", "account.create", "tomas"),
                ("ada", "policy.set", "main"),
                ("ada", "contribution.accept", f"{self.repository.full_name}#12"),
                (None, "release.publish", "v0.8.0"),
            )
        ):
            self.t.add(
                Audit(
                    at=self.now - (9 - i) * DAY,
                    account_id=who and self.people[who].id,
                    repository_id=self.repository.id,
                    action=action,
                    target=target,
                    detail={"branch": "main"},
                )
            )

    def version(
        self,
        message: str,
        tag: str | None,
        parents: Sequence[str] = (),
        record: dict[str, Any] | None = None,
        branch: str = "main",
    ) -> str:
        """A commit; its weights are a few small tensors of a model's shape."""
        weights(self.folder / "model", self.draw.randrange(2**31), CARD)
        made = self.store.commit(
            self.folder / "model",
            message=message,
            branch=branch,
            parents=list(parents) or None if branch == "main" else list(parents),
            author="" if record else "ada",
            record=record,
            **({} if branch == "main" else {"expect": None}),
        ).id
        if tag:
            self.store.tag(tag, made)
        return made

    def contribution(self, at: float, state: str, *, checked: bool = True, reason: str = "") -> Contribution:
        """One, with its checks, scores and a word or two about it."""
        self.number += 1
        who, data, title = WORK[self.number % len(WORK)]
        if who == "mallory" and any(r.kind == "revocation" for r in self.rounds):
            who, data, title = WORK[4]
        if state == "received":
            who, data, title = WORK[1]
        base = self.tip
        commit = (
            self.version(f"contribution {self.number}: {title}", None, [base], branch=f"kept/{self.number}")
            if checked and state != "refused"
            else None
        )
        if commit:
            self.store.refs.update(f"refs/pr/{self.number}", commit, expect=None)
            self.store.update_ref(f"refs/heads/kept/{self.number}", None)
        made = Contribution(
            repository_id=self.repository.id,
            number=self.number,
            account_id=self.people[who].id,
            branch="main",
            base=base,
            source=self.draw.choice(["weights", "patch", "commit"]),
            sent={},
            nonce=f"n{self.number}",
            state=state,
            reason=reason,
            commit=commit,
            content=commit,
            title=title,
            data=f"{data}; nothing of it leaves us.",
            message=f"Finetuned for {self.draw.randint(2, 4)} epochs with a learning rate of 2e-5.\nThe head stayed here.",
            licence="apache-2.0",
            examples=self.draw.randint(2, 70) * 1000,
            metrics={"accuracy": round(self.draw.uniform(84, 93), 2), "loss": 0.31},
            labels=["english"] if self.number % 3 else ["english", "reviewed"],
            created=at,
            updated=at + HOUR,
            statistics="f" * 64 if self.number % 4 == 0 else None,
        )
        self.t.add(made)
        self.t.flush()
        self.said(made, None, at + 60, "received", "")
        if checked:
            self.checks(made)
        if commit:
            self.scores(commit, [self.draw.gauss(0.4, 0.6) for _ in TASKS])
        if self.number % 4 == 0:
            self.said(
                made,
                "ada",
                at + 2 * HOUR,
                "",
                "Thank you! Did you keep the embeddings frozen? The change there is larger than in the other contributions.",
            )
            self.said(
                made,
                who,
                at + 3 * HOUR,
                "",
                "No, everything was trained.\nI can send one with frozen embeddings, if that helps.",
            )
        return made

    def said(self, one: Contribution, who: str | None, at: float, event: str, body: str) -> None:
        account = None if who is None else self.people[who].id
        self.t.add(Comment(contribution_id=one.id, account_id=account, event=event, body=body, created=at))

    def checks(self, one: Contribution) -> None:
        cosine = self.draw.uniform(0.05, 0.4)
        tensors = changes(self.draw.randrange(2**31))
        relative = self.draw.uniform(0.01, 0.03)
        rows: list[tuple[str, str, str, dict[str, Any]]] = [
            ("format", "pass", "103 tensors in one safetensors file", {}),
            ("base", "pass", f"tuned from {one.base[:12]}, the tip of main", {}),
            ("shapes", "pass", "as the base's: 103 tensors, 22,713,216 values", {}),
            ("finite", "pass", "22,713,216 values, all finite", {}),
            ("change", "pass", "new weights: 3f9a1c07b2d4", {}),
            (
                "norms",
                "pass",
                f"changed by {100 * relative:.2f} % of its length; most: pooler.dense.weight, 7.1 %",
                {"relative": relative, "tensors": tensors},
            ),
            (
                "predicted",
                "pass" if one.statistics else "skip",
                "KL 0.021 nats an example" if one.statistics else "no Fisher came with it",
                {},
            ),
            (
                "direction",
                "warn" if one.number % 9 == 0 else "pass",
                f"cosine {-0.01 if one.number % 9 == 0 else cosine:+.3f} with the mean of 4 others",
                {},
            ),
            ("evaluation", "pass", "mean 70.4, 0.4 above its base", {}),
        ]
        for place, (name, state, figure, detail) in enumerate(rows):
            self.t.add(Check(contribution_id=one.id, name=name, place=place, state=state, figure=figure, detail=detail))

    def scores(self, commit: str, gains: Sequence[float]) -> None:
        self.level_of(commit, {task: self.level[task] + gain for task, gain in zip(TASKS, gains, strict=True)})

    def level_of(self, commit: str, gained: Mapping[str, float]) -> None:
        add_scores(self.t, self.repository, commit, {task: TASKS[task][1] + gained[task] for task in TASKS}, self.now)

    def release(self, version: str, round_: Round | None, at: float) -> None:
        self.t.add(
            Release(
                repository_id=self.repository.id,
                branch="main",
                version=version,
                commit=self.tip,
                round_id=None if round_ is None else round_.id,
                created=at,
            )
        )
        self.level_of(self.tip, self.level)

    def begun(self, kind: str, at: float, plan: dict[str, Any], state: str) -> Round:
        made = Round(
            repository_id=self.repository.id,
            branch="main",
            number=len(self.rounds) + 1,
            kind=kind,
            state=state,
            base=self.tip,
            policy=POLICY,
            plan={"attempt": 1, "tries": 0, **plan},
            verdict={},
            figures={},
            created=at,
            updated=at + HOUR,
        )
        self.t.add(made)
        self.t.flush()
        self.rounds.append(made)
        return made

    def shares(self, round_: Round, given: Sequence[Contribution], dropped: Contribution | None) -> None:
        for one in given:
            why = (
                "the fuse scores 71.20 without it and 70.61 with it (mean over the suite, old heads)"
                if one is dropped
                else ""
            )
            self.t.add(
                Share(round_id=round_.id, contribution_id=one.id, weight=1.0 if one.number % 2 else 0.75, dropped=why)
            )
            if one is dropped:
                one.state, one.reason = "refused", f"left out of round {round_.number}: {why}"

    def published(self, round_: Round, gains: Sequence[float], at: float, state: str = "pass") -> None:
        before = dict(self.level)
        self.level = {task: self.level[task] + gain for task, gain in zip(TASKS, gains, strict=True)}
        round_.verdict = verdict(before, self.level, state, "minor")
        version = f"v0.{sum(r.state == 'published' for r in self.rounds) + 1}.0"
        record = {
            "round": {"kind": round_.kind, "number": round_.number, "method": "norm_clip", "inputs": []},
            "release": {"version": version},
        }
        self.tip = self.version(f"{version}: {round_.kind} {round_.number} of main", version, record=record)
        round_.commit, round_.version, round_.figures = (
            self.tip,
            version,
            {"relative_change": 0.0123, "cosine_with_last": 0.31, "seconds": 41.7},
        )
        self.release(version, round_, at + HOUR)

    def round(self, given: Sequence[Contribution], at: float, dropped: Contribution | None = None) -> None:
        made = self.begun("round", at, {}, "published")
        self.shares(made, given, dropped)
        self.published(made, [self.draw.gauss(0.8, 0.4) for _ in TASKS], at)
        for one in given:
            if one is not dropped:
                self.said(one, None, at + HOUR, "fused", f"in {made.version}")

    def came_to_nothing(self, given: Sequence[Contribution], at: float) -> None:
        made = self.begun("round", at, {}, "abandoned")
        self.shares(made, given, None)
        made.reason = "the gate said block: rte may have lost 2.4 points (margin 1)"
        made.verdict = verdict(self.level, {**self.level, "rte": self.level["rte"] - 2.4}, "block", None)
        for one in given:
            one.state, one.reason = "refused", "its round came to nothing"

    def revoke(self, at: float) -> None:
        made = self.begun("revocation", at, {"first": 2}, "published")
        theirs = [one for one in self.t.scalars(_of(self.repository, self.people["mallory"])) if one.state == "fused"]
        made.plan = {**made.plan, "without": [one.number for one in theirs]}
        for one in theirs:
            one.state, one.reason = "revoked", "trained on the test sets"
            self.said(one, "ada", at, "revoked", "trained on the test sets")
        self.published(made, [-0.3, -0.4, -0.2, -0.6, -0.1], at)

    def refused(self) -> None:
        for found, why in (
            ("finite", "not finite: 12 values of encoder.layer.3.output.dense.weight"),
            ("direction", "cosine -0.412 with the mean of 5 others: the sign is flipped?"),
        ):
            one = self.contribution(self.now - 6 * DAY, "refused", checked=False, reason=why)
            for place, (name, state, figure) in enumerate(
                (
                    ("format", "pass", "103 tensors in one safetensors file"),
                    ("base", "pass", "tuned from the tip of main"),
                    (found, "refuse", why),
                )
            ):
                self.t.add(Check(contribution_id=one.id, name=name, place=place, state=state, figure=figure, detail={}))
            self.said(one, None, self.now - 6 * DAY, "refused", why)

    def hold(self, given: Sequence[Contribution], at: float) -> None:
        made = self.begun("round", at, {}, "held")
        self.shares(made, given, None)
        after = {
            task: value + gain
            for (task, value), gain in zip(self.level.items(), (0.9, -0.7, 1.2, -0.9, 0.3), strict=True)
        }
        made.verdict = verdict(self.level, after, "undecided", "minor")
        made.reason = (
            "the gate said undecided: rte may have lost up to 2.3 points (margin 1); 412 more examples would tell"
        )
        made.commit = self.version(
            "round 9 of main: norm_clip of 4 contributions", None, [self.tip], branch="kept/held"
        )
        self.store.update_ref("refs/heads/kept/held", None)
        made.figures = {"relative_change": 0.0188}


def _of(repository: Repository, who: Account) -> Any:
    from sqlalchemy import select

    return select(Contribution).where(Contribution.repository_id == repository.id, Contribution.account_id == who.id)


def _grown(
    t: Transaction, store: Store, repository: Repository, versions: int, level: float, now: float, folder: Path
) -> None:
    """Another model, with a few releases."""
    t.add(
        Branch(
            repository_id=repository.id,
            name="main",
            policy="",
            updated=now,
            paused="rolled back to v0.1.0" if versions == 2 else None,
        )
    )
    tasks = TASKS if repository.suite == SUITE else {"emotion": ("accuracy", 60.0), "irony": ("accuracy", 50.0)}
    for i in range(versions):
        weights(folder / "other", i + 100 * len(repository.name), f"# {repository.name}\n\nRelease {i + 1}.\n")
        made = store.commit(folder / "other", message=f"v0.{i + 1}.0", author=repository.owner.name, branch="main")
        store.tag(f"v0.{i + 1}.0", made.id)
        at = now - (versions - i) * 9 * DAY
        t.add(
            Release(
                repository_id=repository.id,
                branch="main",
                version=f"v0.{i + 1}.0",
                commit=made.id,
                round_id=None,
                created=at,
            )
        )
        add_scores(t, repository, made.id, {task: level + 1.1 * i + 3 * k for k, task in enumerate(tasks)}, now)
