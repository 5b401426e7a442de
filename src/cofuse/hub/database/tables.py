"""The tables. Times are seconds since 1970; ids of commits are the store's; JSON is small and never queried into."""

from __future__ import annotations

from typing import Any, ClassVar

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, MetaData, String, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

NAME = 96  # characters of an account's or a repository's name
ID = 64  # of a commit or a hash


class Base(DeclarativeBase):
    """Names constraints, so that migrations can speak of them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {dict[str, Any]: JSON, list[Any]: JSON, str: Text}


class Account(Base):
    """A person, or an organisation that people belong to; `role` is what it may do on the whole hub."""

    __tablename__ = "accounts"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(NAME), unique=True)
    organisation: Mapped[bool] = mapped_column(default=False)
    role: Mapped[str] = mapped_column(String(16))
    quota: Mapped[int | None] = mapped_column(BigInteger)  # bytes of its repositories
    disabled: Mapped[bool] = mapped_column(default=False)
    created: Mapped[float]


class Member(Base):
    """A person's role in an organisation."""

    __tablename__ = "members"
    organisation_id: Mapped[int] = mapped_column(ForeignKey("accounts.id"), primary_key=True)
    account_id: Mapped[int] = mapped_column(ForeignKey("accounts.id"), primary_key=True, index=True)
    role: Mapped[str] = mapped_column(String(16))


class Token(Base):
    """A key: 256 random bits, of which only the SHA-256 is kept."""

    __tablename__ = "tokens"
    id: Mapped[int] = mapped_column(primary_key=True)
    account_id: Mapped[int] = mapped_column(ForeignKey("accounts.id"), index=True)
    hash: Mapped[str] = mapped_column(String(ID), unique=True)
    shown: Mapped[str] = mapped_column(String(16))  # its first characters, to tell it from others
    label: Mapped[str] = mapped_column(String(200))
    scope: Mapped[str] = mapped_column(String(16))
    created: Mapped[float]
    expires: Mapped[float | None]
    revoked: Mapped[float | None]
    used: Mapped[float | None]
    account: Mapped[Account] = relationship(lazy="joined")


class Session(Base):
    """Somebody signed in on the web page, by a token; it ends with the token."""

    __tablename__ = "sessions"
    hash: Mapped[str] = mapped_column(String(ID), primary_key=True)
    token_id: Mapped[int] = mapped_column(ForeignKey("tokens.id"), index=True)
    csrf: Mapped[str] = mapped_column(String(ID))
    created: Mapped[float]
    expires: Mapped[float]
    token: Mapped[Token] = relationship(lazy="joined")


class Repository(Base):
    """A model's store, and who may do what with it."""

    __tablename__ = "repositories"
    __table_args__ = (UniqueConstraint("owner_id", "name"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    owner_id: Mapped[int] = mapped_column(ForeignKey("accounts.id"))
    name: Mapped[str] = mapped_column(String(NAME))
    key: Mapped[str] = mapped_column(String(32), unique=True)  # names its folder: random, never what somebody typed
    private: Mapped[bool] = mapped_column(default=False)
    description: Mapped[str] = mapped_column(default="")
    suite: Mapped[str] = mapped_column(default="")  # YAML: what its versions are judged by
    suite_hash: Mapped[str] = mapped_column(String(ID), default="")
    bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    downloads: Mapped[int] = mapped_column(default=0)
    created: Mapped[float]
    updated: Mapped[float]
    owner: Mapped[Account] = relationship(lazy="joined")

    @property
    def full_name(self) -> str:
        """Owner and name."""
        return f"{self.owner.name}/{self.name}"


class Grant(Base):
    """A role on one repository, given to an account."""

    __tablename__ = "grants"
    repository_id: Mapped[int] = mapped_column(ForeignKey("repositories.id"), primary_key=True)
    account_id: Mapped[int] = mapped_column(ForeignKey("accounts.id"), primary_key=True, index=True)
    role: Mapped[str] = mapped_column(String(16))


class Upload(Base):
    """Bytes that arrive, in pieces; how many there are is what the file says, not this row."""

    __tablename__ = "uploads"
    key: Mapped[str] = mapped_column(String(32), primary_key=True)  # random; names its file
    repository_id: Mapped[int] = mapped_column(ForeignKey("repositories.id"), index=True)
    account_id: Mapped[int] = mapped_column(ForeignKey("accounts.id"), index=True)
    size: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str | None] = mapped_column(String(ID), index=True)
    done: Mapped[bool] = mapped_column(default=False)
    created: Mapped[float]
    expires: Mapped[float]


class Branch(Base):
    """A branch that evolves: its policy, as written, and when the round under way began."""

    __tablename__ = "branches"
    repository_id: Mapped[int] = mapped_column(ForeignKey("repositories.id"), primary_key=True)
    name: Mapped[str] = mapped_column(String(200), primary_key=True)
    policy: Mapped[str]
    updated: Mapped[float]
    paused: Mapped[str | None]  # why no round is begun, where a maintainer has to look first


class Contribution(Base):
    """The pull request of a model. Its weights are a commit in the repository's store, under `refs/pr/NUMBER`."""

    __tablename__ = "contributions"
    __table_args__ = (
        UniqueConstraint("repository_id", "number"),
        UniqueConstraint("repository_id", "account_id", "nonce"),
        Index("ix_contributions_state", "repository_id", "branch", "state", "number"),
        Index("ix_contributions_listed", "repository_id", "state", "number"),
        Index("ix_contributions_account", "account_id", "id"),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    repository_id: Mapped[int] = mapped_column(ForeignKey("repositories.id"))
    number: Mapped[int]
    account_id: Mapped[int] = mapped_column(ForeignKey("accounts.id"))
    branch: Mapped[str] = mapped_column(String(200))
    base: Mapped[str] = mapped_column(String(ID))  # commit
    source: Mapped[str] = mapped_column(String(16))  # commit, weights, patch
    sent: Mapped[dict[str, Any]]  # what was handed in: the commit, or the uploads by file name
    nonce: Mapped[str] = mapped_column(String(ID))
    state: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str] = mapped_column(default="")  # of a refusal
    commit: Mapped[str | None] = mapped_column(String(ID))
    content: Mapped[str | None] = mapped_column(String(ID), index=True)
    statistics: Mapped[str | None] = mapped_column(String(ID))  # tree of the Fisher that came with it
    title: Mapped[str] = mapped_column(String(200))
    message: Mapped[str] = mapped_column(default="")
    data: Mapped[str] = mapped_column(default="")  # what it was trained on, in words
    licence: Mapped[str] = mapped_column(String(100), default="")
    examples: Mapped[int | None] = mapped_column(BigInteger)
    metrics: Mapped[dict[str, Any]]
    labels: Mapped[list[Any]]
    signature: Mapped[str | None]  # OpenSSF model signature, as it came
    created: Mapped[float]
    updated: Mapped[float]
    account: Mapped[Account] = relationship(lazy="joined")
    repository: Mapped[Repository] = relationship(lazy="joined")

    @property
    def full_name(self) -> str:
        """The repository's, and the number."""
        return f"{self.repository.full_name}#{self.number}"


class Check(Base):
    """One check of a contribution, and its figure."""

    __tablename__ = "checks"
    contribution_id: Mapped[int] = mapped_column(ForeignKey("contributions.id"), primary_key=True)
    name: Mapped[str] = mapped_column(String(40), primary_key=True)
    place: Mapped[int]  # in the order that they are shown
    state: Mapped[str] = mapped_column(String(16))  # pass, warn, refuse, skip
    figure: Mapped[str]
    detail: Mapped[dict[str, Any]]


class Comment(Base):
    """What somebody says of a contribution; `event` is empty, or what happened (accepted, withdrawn, fused, ...)."""

    __tablename__ = "comments"
    id: Mapped[int] = mapped_column(primary_key=True)
    contribution_id: Mapped[int] = mapped_column(ForeignKey("contributions.id"), index=True)
    account_id: Mapped[int | None] = mapped_column(ForeignKey("accounts.id"))
    event: Mapped[str] = mapped_column(String(40), default="")
    body: Mapped[str]
    created: Mapped[float]
    account: Mapped[Account | None] = relationship(lazy="joined")


class Round(Base):
    """A fuse of contributions, from the choice of what goes in to its release, or to what kept it from that.

    `kind` is round, revocation or rollback. `base` is where the branch was; `commit` what was made.
    """

    __tablename__ = "rounds"
    __table_args__ = (UniqueConstraint("repository_id", "branch", "number"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    repository_id: Mapped[int] = mapped_column(ForeignKey("repositories.id"))
    branch: Mapped[str] = mapped_column(String(200))
    number: Mapped[int]
    kind: Mapped[str] = mapped_column(String(16))
    state: Mapped[str] = mapped_column(String(16))
    base: Mapped[str] = mapped_column(String(ID))
    commit: Mapped[str | None] = mapped_column(String(ID))
    policy: Mapped[str]
    plan: Mapped[dict[str, Any]]  # what is done: of a revocation, whose; of a rollback, to where
    verdict: Mapped[dict[str, Any]]
    figures: Mapped[dict[str, Any]]  # how far it moved, what the fuse took
    reason: Mapped[str] = mapped_column(default="")
    version: Mapped[str | None] = mapped_column(String(40))
    created: Mapped[float]
    updated: Mapped[float]
    repository: Mapped[Repository] = relationship(lazy="joined")


class Share(Base):
    """A contribution's part in a round."""

    __tablename__ = "shares"
    round_id: Mapped[int] = mapped_column(ForeignKey("rounds.id"), primary_key=True)
    contribution_id: Mapped[int] = mapped_column(ForeignKey("contributions.id"), primary_key=True, index=True)
    weight: Mapped[float]
    dropped: Mapped[str] = mapped_column(default="")  # why it was left out after all
    contribution: Mapped[Contribution] = relationship(lazy="joined")


class Release(Base):
    """A version that was published: a commit, and the tag that names it."""

    __tablename__ = "releases"
    __table_args__ = (UniqueConstraint("repository_id", "version"), UniqueConstraint("round_id"))
    id: Mapped[int] = mapped_column(primary_key=True)
    repository_id: Mapped[int] = mapped_column(ForeignKey("repositories.id"), index=True)
    branch: Mapped[str] = mapped_column(String(200))
    version: Mapped[str] = mapped_column(String(40))
    commit: Mapped[str] = mapped_column(String(ID))
    round_id: Mapped[int | None] = mapped_column(ForeignKey("rounds.id"))
    created: Mapped[float]


class Evaluation(Base):
    """A score of a version: one suite, task, protocol and metric."""

    __tablename__ = "evaluations"
    __table_args__ = (UniqueConstraint("repository_id", "commit", "suite", "task", "protocol"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    repository_id: Mapped[int] = mapped_column(ForeignKey("repositories.id"))
    commit: Mapped[str] = mapped_column(String(ID), index=True)
    suite: Mapped[str] = mapped_column(String(ID))  # its hash
    task: Mapped[str] = mapped_column(String(200))  # * is the mean over tasks
    protocol: Mapped[str] = mapped_column(String(40))
    metric: Mapped[str] = mapped_column(String(40))
    mean: Mapped[float]
    low: Mapped[float | None]
    high: Mapped[float | None]
    n: Mapped[int]
    created: Mapped[float]


class Job(Base):
    """A piece of work. Whoever holds its lease does it; `fence` grows with each claim, so that a late answer is known."""

    __tablename__ = "jobs"
    __table_args__ = (Index("ix_jobs_claim", "state", "ready"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(40))
    key: Mapped[str] = mapped_column(String(200), unique=True)  # the same work asked for twice is done once
    repository_id: Mapped[int] = mapped_column(ForeignKey("repositories.id"), index=True)
    payload: Mapped[dict[str, Any]]
    state: Mapped[str] = mapped_column(String(16))  # waiting, running, done, failed
    ready: Mapped[float]  # not before
    leased: Mapped[float | None]  # until
    fence: Mapped[int] = mapped_column(default=0)
    attempts: Mapped[int] = mapped_column(default=0)
    worker: Mapped[str] = mapped_column(String(200), default="")
    progress: Mapped[str] = mapped_column(default="")
    error: Mapped[str] = mapped_column(default="")
    created: Mapped[float]
    updated: Mapped[float]


class Audit(Base):
    """What was done by whom; rows are only ever added."""

    __tablename__ = "audit"
    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[float] = mapped_column(index=True)
    account_id: Mapped[int | None] = mapped_column(ForeignKey("accounts.id"))
    repository_id: Mapped[int | None] = mapped_column(ForeignKey("repositories.id"), index=True)
    action: Mapped[str] = mapped_column(String(60))
    target: Mapped[str] = mapped_column(String(300))
    detail: Mapped[dict[str, Any]]
    account: Mapped[Account | None] = relationship(lazy="joined")
