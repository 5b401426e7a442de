"""How numbers, protocols and models are called where people read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PROTOCOLS: Mapping[str, str] = {
    "finetune": "full finetuning",
    "probe": "linear probe",
    "fewshot": "few-shot finetuning",
    "oldhead": "old head",
    "zeroshot": "zero-shot",
    "perplexity": "perplexity",
}


def protocol_words(protocol: str) -> str:
    """What a protocol is called; an unknown one by its own name."""
    return PROTOCOLS.get(protocol, protocol)


def setting_words(study: Mapping[str, Any], suite: str, protocol: str) -> str:
    """What a study's document says of a protocol's examples and draws; empty when it says nothing.

    >>> setting_words({"evaluate_unseen": {"fewshot": {"examples": 100, "draws": 3}}}, "unseen", "fewshot")
    '100 examples, 3 draws'
    """
    settings = (study.get(f"evaluate_{suite}") or {}).get(protocol)
    if not isinstance(settings, Mapping):
        return ""
    examples, draws = settings.get("examples"), settings.get("draws") or 1
    said = "all examples" if examples is None else counted(examples, "example")
    return said if draws == 1 else f"{said}, {counted(draws, 'draw')}"


def counted(number: int, noun: str) -> str:
    """A number with its noun.

    >>> counted(1, "seed"), counted(1200, "example")
    ('1 seed', '1,200 examples')
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def score(value: float) -> str:
    """A score in percent, to a tenth.

    >>> score(66.04), score(-0.04)
    ('66.0', '0.0')
    """
    return f"{round(value, 1) + 0.0:.1f}".replace("-", "\N{MINUS SIGN}")


def signed(value: float) -> str:
    """A difference in points, to a tenth.

    >>> signed(2.44), signed(0.01)
    ('+2.4', '0.0')
    """
    rounded = round(value, 1) + 0.0
    return "0.0" if rounded == 0 else f"{rounded:+.1f}".replace("-", "\N{MINUS SIGN}")


def duration(seconds: float) -> str:
    """Seconds as people say them.

    >>> duration(41.2), duration(330), duration(7500)
    ('41 s', '5 min 30 s', '2 h 5 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, left = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {left} s" if left else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def short(commit: str) -> str:
    """The beginning of a commit id, enough to find it by.

    >>> short("0123456789abcdef")
    '0123456789'
    """
    return commit[:10]
