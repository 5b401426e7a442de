"""What a check of models has to say, for people and for machines."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from .deltas import Deltas

Severity = Literal["stop", "warn", "note"]
ORDER: tuple[Severity, ...] = ("stop", "warn", "note")  # the gravest first


@dataclass(frozen=True, slots=True)
class Finding:
    """One difference.

    Attributes:
        severity: stop (the fuse is refused, or its result is worthless), warn (think about it), note (good to know).
        topic: what differs.
        between: the models.
        got, expected: what the second and the first of them have.
        consequence: what follows when nothing is done.
        setting: what in the recipe decides it; empty where nothing does.
        keys: the recipe's keys that settle it.
    """

    severity: Severity
    topic: str
    between: tuple[str, ...]
    got: str
    expected: str
    consequence: str
    setting: str = ""
    keys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """All findings, the gravest first, and what was measured of the deltas."""

    models: tuple[str, ...]
    base: str | None
    findings: tuple[Finding, ...]
    deltas: Deltas | None

    @property
    def worst(self) -> Severity | None:
        """The gravest severity, None where nothing was found."""
        return self.findings[0].severity if self.findings else None

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "models": list(self.models),
            "base": self.base,
            "findings": [asdict(f) for f in self.findings],
            "deltas": None if self.deltas is None else asdict(self.deltas),
        }

    def text(self) -> str:
        """For people."""
        lines = [f"compatibility of {len(self.models)} models" + (f" on {self.base}" if self.base else "")]
        for finding in self.findings:
            lines.append(f"  {finding.severity:<5}{finding.topic}: {' and '.join(finding.between)}")
            lines.append(f"       {finding.got}" + (f" (expected {finding.expected})" if finding.expected else ""))
            lines.append(f"       {finding.consequence}")
            if finding.setting:
                lines.append(f"       decided by {finding.setting}")
        if not self.findings:
            lines.append("  nothing differs")
        if self.deltas is not None and self.deltas.models and self.deltas.looked:
            lines += _table(self.deltas)
        return "\n".join(lines)


def _table(deltas: Deltas) -> list[str]:
    width = max(len(m) for m in deltas.models)
    share = 100 * deltas.looked / deltas.elements
    rows = [f"  deltas from {deltas.base}, over {share:.3g} % of the values of {deltas.tensors} tensors"]
    numbers = " ".join(f"{i + 1:>6}" for i in range(len(deltas.models)))
    rows.append(f"     {'':<{width}}  |t - b| / |b|  cosine {numbers}")
    for i, address in enumerate(deltas.models):
        cosines = " ".join(f"{c:>6.2f}" for c in deltas.cosine[i])
        rows.append(f"  {i + 1:>2} {address:<{width}}  {deltas.relative[i]:>13.4g}         {cosines}")
    return rows
