"""What `cofuse rank` shows: the table of gains in the terminal, as CSV, as JSON and as a page."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..measure.evaluation.suite import OpenSuite
from ..measure.ranking.agreement import Agreement
from ..measure.ranking.ranking import Ranked, Ranking
from .files import as_json, make, replace
from .ranking_charts import draw_agreement, draw_gains, said
from .template import drawn, rendered
from .words import counted, duration, protocol_words, signed

if TYPE_CHECKING:
    from rich.console import Console

# Points from which a cell has the next shade.
_SHADES = (0.5, 1.0, 2.0, 4.0)


@dataclass(frozen=True)
class Rankings:
    """What is shown: rankings of the same models, the asked one first, and how well the cheap ones tell the dear one."""

    suite: OpenSuite
    rankings: tuple[Ranking, ...]
    agreements: tuple[Agreement, ...]

    def document(self) -> dict[str, Any]:
        """What `summary.json` holds: plain values, the same for the same records."""
        return {
            "what": "rank",
            "suite": self.suite.document(),
            "rankings": [
                {
                    "protocol": r.protocol,
                    "tasks": list(r.tasks),
                    "seeds": r.seeds,
                    "seconds": r.seconds,
                    "best": {name: best.model for name, best in r.best.items()},
                    "pretrained": {name: dict(zip(r.tasks, own, strict=True)) for name, own in r.scores.items()},
                    "models": [asdict(one) for one in r.ranked],
                }
                for r in self.rankings
            ],
            "agreements": [asdict(a) | {"regret": {str(k): v for k, v in a.regret.items()}} for a in self.agreements],
        }


def ranking_csv(ranking: Ranking) -> str:
    """One row a model, one column a task's gain; numbers as they are, to be read by machines."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["pretrained", "model", "content", "gain", "low", "high", "better", *ranking.tasks])
    for r in ranking.ranked:
        gain = (r.gain.mean, r.gain.low, r.gain.high, r.better)
        writer.writerow([r.pretrained, r.model, r.content, *map(repr, gain), *(repr(t.gain) for t in r.tasks)])
    return out.getvalue()


def write_rankings(folder: Path, found: Rankings) -> Path:
    """Write `summary.json`, `ranking.csv` (one more, `ranking-PROTOCOL-TASKS.csv`, for each further ranking) and the page.

    Raises:
        CofuseError: jinja2 is not installed (the other files are written before), or the folder cannot be written to.
    """
    make(folder)
    replace(folder / "summary.json", as_json(found.document()))
    for i, ranking in enumerate(found.rankings):
        replace(
            folder / (f"ranking-{ranking.protocol}-{len(ranking.tasks)}.csv" if i else "ranking.csv"),
            ranking_csv(ranking).encode(),
        )
    page = folder / "report.html"
    replace(page, _page(found).encode())
    return page


def _page(found: Rankings) -> str:
    first = found.rankings[0]
    return rendered(
        "ranking",
        "gate.css",
        heading=f"{counted(len(first.ranked), 'base model')}: {first.label}",
        found=found,
        suite=found.suite,
        charts=[
            [drawn(draw_gains(r.of(name), f"gains-{i}-{j}")) for j, name in enumerate(r.architectures)]
            for i, r in enumerate(found.rankings)
        ],
        scatters=[drawn(draw_agreement(a, f"scatter-{i}")) for i, a in enumerate(found.agreements)],
        agreement_words=agreement_words,
        shade=shade,
        said=said,
        words=protocol_words,
        counted=counted,
    )


def shade(gain: float) -> str:
    """The class of a cell in the heat map.

    >>> shade(1.5), shade(-9), shade(0.2)
    ('up2', 'down4', '')
    """
    strength = sum(abs(gain) >= limit for limit in _SHADES)
    return f"{'up' if gain > 0 else 'down'}{strength}" if strength else ""


def agreement_words(found: Agreement) -> str:
    """How well one ranking tells another, in a sentence."""
    r, tau, cost = found.spearman, found.kendall, found.regret
    return (
        f"{found.predictor} against {found.reference}, {counted(len(found.models), 'model')} over {found.pretrained}: "
        f"Spearman {r.value:.2f} ({r.low:.2f} to {r.high:.2f}), Kendall {tau.value:.2f} ({tau.low:.2f} to {tau.high:.2f}); "
        f"regret of its first {cost[1]:.2f} points, of its first three {cost[3]:.2f}; "
        f"{duration(found.seconds[0])} instead of {duration(found.seconds[1])}."
    )


def ranking_tables(found: Rankings, console: Console) -> None:
    """Print a table an architecture, the best model first; single tasks where the terminal has room."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    for ranking in found.rankings[:1]:
        for name in ranking.architectures:
            mean = sum(ranking.scores[name]) / len(ranking.tasks)
            title = f"{ranking.label}: gain in points over {name} (mean score {mean:.1f})"
            table = Table(title=Text(title, style="bold"), title_justify="left", box=box.SIMPLE)
            table.add_column("model", overflow="fold")
            for head in ("gain", "95 %", "tasks that gain", *_shown(ranking, console.width)):
                table.add_column(Text(head), justify="right")
            for r in ranking.of(name):
                table.add_row(
                    *(Text(cell.replace("\N{MINUS SIGN}", "-")) for cell in _cells(r, ranking, console.width))
                )
            console.print(table)
    for architecture, best in found.rankings[0].best.items():
        console.print(Text(f"best of {architecture}: {best.model}, {said(best)}".replace("\N{MINUS SIGN}", "-")))
    for agreement in found.agreements:
        console.print(Text(agreement_words(agreement)))
    seeds = counted(found.rankings[0].seeds, "seed")
    console.print(
        Text(f"95 % intervals: a bootstrap over tasks and {seeds}. Suite {found.suite.hash[:16]}.", style="dim")
    )


def _shown(ranking: Ranking, width: int) -> Sequence[str]:
    return ranking.tasks if width >= 60 + 12 * len(ranking.tasks) else ()


def _cells(r: Ranked, ranking: Ranking, width: int) -> list[str]:
    limits = f"{signed(r.gain.low)} to {signed(r.gain.high)}"
    own = {t.task: signed(t.gain) for t in r.tasks}
    return [r.model, signed(r.gain.mean), limits, f"{100 * r.better:.0f} %", *(own[t] for t in _shown(ranking, width))]
