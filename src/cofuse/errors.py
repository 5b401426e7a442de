"""The exception tree: every failure that a user can cause or meet is one of these.

    CofuseError
    ├── CheckpointError          a checkpoint cannot be read or written
    │   ├── HeaderError          a safetensors header is malformed or hostile
    │   └── AdapterError         an adapter does not fit its base, or is of a kind we refuse
    ├── PatchError               a patch cannot be made, read or applied
    ├── AddressError             an address names nothing, or more than one thing
    ├── DocumentError            a YAML document (recipe, task, suite, study) is wrong
    ├── FuseError                checkpoints cannot be fused as asked
    ├── StoreError               the store refuses, or what it holds is damaged
    │   ├── CorruptError         bytes do not match their id
    │   ├── FullError            there is no room left
    │   ├── RefError             a ref is missing, malformed or has moved
    │   └── ConflictError        both sides of a merge changed what cannot be fused
    ├── TaskError                a task, its data or its model cannot be used
    │   └── DivergedError        training ended in weights that are not finite
    ├── StudyError               a study cannot be run or resumed
    ├── SuiteError               a suite cannot be evaluated, or its scores not be compared
    ├── HubError                 a hub refuses, or cannot be reached
    └── Interrupted              somebody stopped the work; what is finished is kept

An error says what, where, got, expected, and what to do. The command line prints it without a traceback.
"""

from collections.abc import Iterable


class CofuseError(Exception):
    """What went wrong, where, what was found, what was expected, and what to do about it.

    >>> print(CofuseError("tensor is not finite", where="a.safetensors: x", got="nan", hint="train again"))
    tensor is not finite
      where:    a.safetensors: x
      got:      nan
      to do:    train again
    """

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        got: object = None,
        expected: object = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.where = None if where is None else str(where)
        self.got = None if got is None else str(got)
        self.expected = None if expected is None else str(expected)
        self.hint = hint

    def __reduce__(self) -> tuple[object, ...]:
        # Worker processes hand errors back by pickling them; the default forgets keyword arguments.
        return (_rebuild, (type(self), self.what, self.where, self.got, self.expected, self.hint))

    def __str__(self) -> str:
        rows = [("where", self.where), ("got", self.got), ("expected", self.expected), ("to do", self.hint)]
        return "\n".join([self.what, *(f"  {label + ':':<9} {value}" for label, value in rows if value)])

    @property
    def line(self) -> str:
        """The same on one line, for records and logs."""
        parts = [self.what]
        if self.where:
            parts.append(f"in {self.where}")
        if self.got:
            parts.append(f"got {self.got}")
        if self.expected:
            parts.append(f"expected {self.expected}")
        return ", ".join(parts)


def _rebuild(
    kind: type[CofuseError], what: str, where: object, got: object, expected: object, hint: str | None
) -> CofuseError:
    return kind(what, where=where, got=got, expected=expected, hint=hint)


class CheckpointError(CofuseError):
    """A checkpoint cannot be read or written."""


class HeaderError(CheckpointError):
    """A safetensors header is malformed or hostile."""


class AdapterError(CheckpointError):
    """An adapter does not fit its base, or is of a kind that is refused."""


class PatchError(CofuseError):
    """A patch cannot be made, read or applied."""


class AddressError(CofuseError):
    """An address names nothing, or more than one thing."""


class DocumentError(CofuseError):
    """A YAML document (recipe, task, suite, study) is wrong."""


class FuseError(CofuseError):
    """Checkpoints cannot be fused as asked."""


class StoreError(CofuseError):
    """The store refuses, or what it holds is damaged."""


class CorruptError(StoreError):
    """Stored bytes do not match their id."""


class FullError(StoreError):
    """There is no room left."""


class RefError(StoreError):
    """A ref is missing, malformed or has moved."""


class ConflictError(StoreError):
    """Both sides of a merge changed what cannot be fused; nothing was written.

    Args:
        conflicts: all of them; each says the name, and what each side did, as text.
    """

    def __init__(self, conflicts: Iterable[object]) -> None:
        self.conflicts = tuple(conflicts)
        count = len(self.conflicts)
        super().__init__(
            "both sides changed what cannot be fused",
            got="\n    ".join([f"{count} conflict{'s' * (count != 1)}", *map(str, self.conflicts)]),
            hint="take one side of each: --ours GLOB, --theirs GLOB",
        )

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.conflicts,))


class TaskError(CofuseError):
    """A task, its data or its model cannot be used."""


class DivergedError(TaskError):
    """Training ended in weights that are not finite."""


class StudyError(CofuseError):
    """A study cannot be run or resumed."""


class SuiteError(CofuseError):
    """A suite cannot be evaluated, or its scores cannot be compared."""


class HubError(CofuseError):
    """A hub refuses, or cannot be reached."""


class Interrupted(CofuseError):  # noqa: N818 - not a mistake of anybody
    """Somebody stopped the work; what is finished is kept."""
