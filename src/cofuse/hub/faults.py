"""What a hub answers when it does not do as asked: a status, and a code that Hugging Face's clients know."""

from __future__ import annotations

from typing import ClassVar

from ..errors import HubError


class Fault(HubError):  # noqa: N818 - what it is called where it is answered
    """Answered with `status`; `code` is sent as X-Error-Code, where Hugging Face's clients look."""

    status: ClassVar[int] = 400
    code: ClassVar[str | None] = None


class Invalid(Fault):
    """The request is wrong."""


class Unknown(Fault):
    """No such thing, or none that this account may see."""

    status = 404


class NoRepository(Unknown):
    """No such repository, or none that this account may see."""

    code = "RepoNotFound"


class NoRevision(Unknown):
    """No such branch, tag or commit."""

    code = "RevisionNotFound"


class NoFile(Unknown):
    """No such file in the version."""

    code = "EntryNotFound"


class Unauthenticated(Fault):
    """A token is needed, or the one that came is not good."""

    status = 401


class Denied(Fault):
    """The account may not do this."""

    status = 403


class Conflict(Fault):
    """It is there already, or has moved meanwhile."""

    status = 409


class TooLarge(Fault):
    """More bytes than allowed."""

    status = 413


class Refused(Fault):
    """The thing itself is wrong: weights that are damaged, not finite, of another base."""

    status = 422


class TooOften(Fault):
    """Too many requests; `hint` says how long to wait."""

    status = 429


class Unavailable(Fault):
    """Not now: where weights are kept cannot be reached."""

    status = 503


class Full(Fault):
    """There is no room."""

    status = 507
