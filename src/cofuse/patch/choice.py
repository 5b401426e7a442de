"""How people say which values may change: `fish:0.5%`, `magnitude:0.5%`, `random:0.5%:7`, `bias`, `names:*.query.*`.

One spelling for the values that a sparse patch keeps (`cofuse diff --by`) and those that a masked training trains
(`cofuse finetune --mask`). Before a training the magnitude is the model's own, after it the change's.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

from ..document import nearest
from ..errors import PatchError

_SHARE = re.compile(r".*%|0?\.\d+|1\.0*|\d+(?:\.\d*)?[eE]-\d+")


@dataclass(frozen=True, slots=True)
class Word:
    """A row of `WORDS`.

    Attributes:
        by: the mask's name in `Sparse`.
        counts: whether a share of the values is taken.
        argument: what may follow; empty for nothing.
    """

    by: str
    counts: bool
    argument: str = ""


WORDS = {
    "fish": Word("fisher", counts=True, argument="ADDRESS of a Fisher"),
    "fisher": Word("fisher", counts=True, argument="ADDRESS of a Fisher"),
    "magnitude": Word("magnitude", counts=True),
    "random": Word("random", counts=True, argument="SEED"),
    "bias": Word("bias", counts=False),
    "names": Word("names", counts=False, argument="GLOB,GLOB"),
}

# For the help of commands.
SPELLED = "fish:0.5%, magnitude:0.5%, random:0.5%:SEED, bias, names:GLOB,GLOB"


@dataclass(frozen=True, slots=True)
class Choice:
    """Which values: a mask that is not made yet.

    Attributes:
        by: a mask's name in `Sparse`: fisher, magnitude, random, bias, names.
        share: of all values; None where none was said, or where none is needed.
        argument: what else was said: an address, a seed, globs.
        per_tensor: whether the share is of each tensor.
    """

    by: str
    share: float | None = None
    argument: str = ""
    per_tensor: bool = False

    @property
    def counts(self) -> bool:
        """Whether it takes a share."""
        return WORDS[self.by].counts

    @property
    def seed(self) -> int | None:
        """Of a random mask; None where none was said."""
        return int(self.argument) if self.by == "random" and self.argument else None

    @property
    def globs(self) -> tuple[str, ...]:
        """Of a mask by names."""
        return tuple(glob.strip() for glob in self.argument.split(",") if glob.strip()) if self.by == "names" else ()

    def whole(self, share: str | None, *, per_tensor: bool, where: str) -> Choice:
        """Itself, with what was said beside the word.

        Raises:
            PatchError: the share is said twice, or is said of a mask that takes none, or nowhere.
        """
        if share is not None and (self.share is not None or not self.counts):
            wrong = "a share twice" if self.counts else "a mask that takes no share"
            raise PatchError(wrong, where=where, got=share, hint=f"one of {SPELLED}")
        found = replace(self, share=self.share if share is None else share_of(share, where), per_tensor=per_tensor)
        if self.counts and found.share is None:
            raise PatchError("say how many values", where=where, got=self.by, expected=f"a share: {self.by}:0.5%")
        if per_tensor and not self.counts:
            raise PatchError("a mask that takes no share of each tensor", where=where, got=self.by)
        return found

    def __str__(self) -> str:
        share = "" if self.share is None else f":{100 * self.share:g}%{' of each tensor' if self.per_tensor else ''}"
        return f"{'fish' if self.by == 'fisher' else self.by}{share}{f':{self.argument}' if self.argument else ''}"


def choice(text: str, where: str = "mask") -> Choice:
    """Read a mask's spelling.

    Args:
        text: the word, and what follows it: its share, then its argument.
        where: what errors call the place.

    Raises:
        PatchError: no such mask, or what follows is not of it.

    >>> choice("fish:0.5%"), choice("random:0.01:7").seed, choice("names:*.bias, embed*").globs
    (Choice(by='fisher', share=0.005, argument='', per_tensor=False), 7, ('*.bias', 'embed*'))
    >>> print(choice("magnitude:2%"))
    magnitude:2%
    """
    kind, _, rest = text.partition(":")
    word = WORDS.get(kind)
    if word is None:
        raise PatchError("no such mask", where=where, got=kind, hint=nearest(kind, WORDS))
    share = None
    if word.counts:
        head, _, tail = rest.partition(":")
        if _SHARE.fullmatch(head.strip()):
            share, rest = share_of(head, where), tail
    if rest and not word.argument:
        raise PatchError("not of this mask", where=where, got=text, expected=f"{kind}{':SHARE' * word.counts}")
    if word.by == "random" and rest and not (rest.isascii() and rest.isdecimal()):
        raise PatchError("a random mask has a seed", where=where, got=text, expected="random:0.5%:0")
    if word.by == "names" and not rest.replace(",", "").strip():
        raise PatchError("a mask by names has names", where=where, got=text, expected="names:*.query.*")
    return Choice(word.by, share, rest)


def share_of(text: str, where: str = "share") -> float:
    """A share as people write it.

    Raises:
        PatchError: it is not above 0 and at most 1.

    >>> share_of("0.5%"), share_of("0.005")
    (0.005, 0.005)
    """
    number, percent = (text.strip()[:-1], True) if text.strip().endswith("%") else (text, False)
    try:
        found = float(number) / 100 if percent else float(number)
    except ValueError:
        found = math.nan
    if not 0 < found <= 1:
        raise PatchError("not a share", where=where, got=text, expected="0.5%, or 0.005")
    return found
