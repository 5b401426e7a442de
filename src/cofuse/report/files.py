"""The files of a run's folder that a report is."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import CofuseError
from .summary import Summary, summarize


def write_report(folder: Path, records: Sequence[Any], *, summary: Summary | None = None) -> Path:
    """Write `summary.json`, `report.png` and `report.html`; each is whole or not there.

    Args:
        folder: of the run.
        records: of the run, which may still be going on.
        summary: of these records, where it was made already.

    Returns:
        The page.

    Raises:
        CofuseError: jinja2 or matplotlib is not installed (`summary.json` is written before they are needed), or the
            folder cannot be written to.
        StudyError: the records contradict each other.
    """
    from .page import draw_page, heading
    from .panels import panels
    from .png import draw_png

    summary = summarize(records) if summary is None else summary
    replace(folder / "summary.json", as_json(summary.document()))
    charts = panels(summary)
    note = "Score in percent, mean over tasks; bars: 95 % over seeds and draws. Dashed: baselines."
    picture = draw_png(charts, heading(summary.scores), note)
    replace(folder / "report.png", picture)
    page = folder / "report.html"
    replace(page, draw_page(summary, charts, records).encode())
    return page


def as_json(document: Any) -> bytes:
    """A document as `summary.json` holds it."""
    return (json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode()


def make(folder: Path) -> None:
    """Make a run's folder where there is none.

    Raises:
        CofuseError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CofuseError("cannot write a report", where=folder, got=error.strerror) from None


def replace(path: Path, data: bytes) -> None:
    """Put a file in place of another in one step; a kill leaves the old one.

    Raises:
        CofuseError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        try:
            with temporary.open("xb") as file:
                file.write(data)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise CofuseError("cannot write a report", where=path, got=error.strerror) from None
