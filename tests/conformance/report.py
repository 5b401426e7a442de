"""The table that ends a run: how far from mergekit each method was, and which entries were excepted by which law."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Row:
    """What was seen of a method on one kind of input and dtype, over its settings.

    `own` is the worst deviation where mergekit's own rounding is excepted: then `worst` is from its wider arithmetic.
    """

    cases: int = 0
    entries: int = 0
    worst: float = 0.0
    where: str = ""
    own: float = 0.0
    excepted: Counter[str] = field(default_factory=Counter)


@dataclass
class Report:
    """Rows by method, input and dtype; and lines about masks."""

    rows: dict[tuple[str, str, str], Row] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(
        self,
        method: str,
        kind: str,
        dtype: str,
        case: str,
        worst: float,
        own: float,
        entries: int,
        excepted: Counter[str],
    ) -> None:
        row = self.rows.setdefault((method, kind, dtype), Row())
        row.cases += 1
        row.entries += entries
        row.excepted.update(excepted)
        row.own = max(row.own, own)
        if worst >= row.worst:
            row.worst, row.where = worst, case

    def lines(self) -> list[str]:
        """Markdown."""
        found = []
        if self.rows:
            found += [
                "| method | input | dtype | settings | entries | worst deviation | at | excepted entries, by law |"
            ]
            found += ["|---|---|---|---|---|---|---|---|"]
        for (method, kind, dtype), row in sorted(self.rows.items()):
            unit = "of the norm" if dtype == "F32" else "ulp"
            laws = "; ".join(f"{law}: {count:,}" for law, count in sorted(row.excepted.items())) or "none"
            laws += f" (up to {row.own:.2g} {unit})" if row.own else ""
            found.append(
                f"| {method} | {kind} | {dtype} | {row.cases} | {row.entries:,} | {row.worst:.2g} {unit} | {row.where} | {laws} |"
            )
        return [*found, *(["", *(f"- {note}" for note in self.notes)] if self.notes else [])]
