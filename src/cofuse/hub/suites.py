"""A repository's suite: what its versions are judged by. Its tasks are names of tasks in the hub's folder of tasks."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.orm import Session as Transaction

from ..document import parse_document
from ..errors import SuiteError
from .access.audit import note
from .access.roles import Role
from .database import Repository
from .faults import Unknown
from .repositories import Seen

if TYPE_CHECKING:
    from ..measure.evaluation.suite import OpenSuite

_TASK = r"^[A-Za-z0-9][A-Za-z0-9_.\-]*$"


class Named(BaseModel):
    """What is checked of a suite where nothing can be measured; the rest is when it is opened."""

    model_config = ConfigDict(extra="allow")
    name: Annotated[str, Field(pattern=_TASK, max_length=100)]
    # Names alone: a path would read the hub's files.
    tasks: Annotated[tuple[Annotated[str, Field(pattern=_TASK)], ...], Field(min_length=1, max_length=200)]


def set_suite(transaction: Transaction, seen: Seen, text: str) -> str:
    """Give a repository its suite, or none (an empty text); gives the suite's hash.

    Raises:
        DocumentError: it is wrong.
    """
    seen.must(Role.MAINTAIN)
    row = transaction.get(Repository, seen.repository.id)
    if row is None:
        raise Unknown("no such repository")
    row.suite, row.suite_hash = text, suite_hash(text) if text.strip() else ""
    note(transaction, seen.visitor, "suite.set", row.full_name, repository=row.id, hash=row.suite_hash)
    return row.suite_hash


def suite_hash(text: str) -> str:
    """A hash of what a suite says, whatever its spaces and the order of its keys.

    >>> suite_hash("{name: a, tasks: [t]}") == suite_hash("{tasks: [t],   name: a}")
    True
    """
    said: Any = parse_document(text, Named, where="suite").model_dump(mode="json")
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def opened(text: str, tasks: Path | None, *, protocols: tuple[str, ...] = ()) -> OpenSuite:
    """The suite with its tasks; needs the training stack.

    Args:
        text: as it was written.
        tasks: the hub's folder of tasks.
        protocols: these alone; old heads among them are fitted on all that there is to test on.

    Raises:
        SuiteError: it cannot be measured here; says why.
    """
    parse_document(text, Named, where="suite")
    if tasks is None:
        raise SuiteError(
            "nothing can be measured here", got="no folder of tasks", hint="the setting `tasks`, or --tasks"
        )
    try:
        import sklearn  # noqa: F401
        import transformers  # noqa: F401

        from ..measure.evaluation.suite import Suite, open_suite
    except ImportError as error:
        raise SuiteError(
            "nothing can be measured here", got=f"no {error.name}", hint='pip install "cofuse[train]"'
        ) from None
    suite = parse_document(text, Suite, where="suite")
    if "oldhead" in protocols and suite.protocols.oldhead is None:
        suite = parse_document(text, Suite, where="suite", changes={"protocols.oldhead": {"examples": 1000}})
    return open_suite(suite, [tasks], protocols=protocols)
