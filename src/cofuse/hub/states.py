"""The states that things go through; the strings are what tables and the API hold."""

from __future__ import annotations

from enum import StrEnum


class Offered(StrEnum):
    """A contribution.

    draft: announced by a Hugging Face client; its weights are still to come

    received ──> open ──> fusing ──> fused ──> revoked
        │         │ ╲        │
        v         v  ╲───────┘ (left out, or the round came to nothing)
     refused   withdrawn
    """

    DRAFT = "draft"  # announced; its weights are still to come
    RECEIVED = "received"  # all of it is here; not looked at yet
    OPEN = "open"  # screened; may be fused
    FUSING = "fusing"  # part of a round under way
    FUSED = "fused"  # part of a release
    REFUSED = "refused"  # by a check, or by a maintainer; `reason` says why
    WITHDRAWN = "withdrawn"  # by who offered it
    REVOKED = "revoked"  # taken out of what it had been fused into, or may no longer be


class Checked(StrEnum):
    """A check of a contribution."""

    PASS = "pass"  # noqa: S105 - not a password
    WARN = "warn"  # a maintainer should look
    REFUSE = "refuse"
    SKIP = "skip"  # could not be made: `figure` says why


class Stage(StrEnum):
    """A round, a revocation or a rollback.

    fusing ──> judging ──> publishing ──> published
       │          │
       v          v
     failed     held ──> publishing | abandoned     (a maintainer decides)
    """

    FUSING = "fusing"
    JUDGING = "judging"
    PUBLISHING = "publishing"
    PUBLISHED = "published"
    HELD = "held"  # the gate did not let it pass, and the policy asks a maintainer
    ABANDONED = "abandoned"  # by the policy, or by a maintainer
    FAILED = "failed"  # could not be made; `reason` says why, and it can be tried again


class Done(StrEnum):
    """A job."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"  # as often as it is tried; can be tried again by hand
