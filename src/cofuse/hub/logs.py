"""Log lines: one JSON object each, or text. What has a secret in it is never logged: no headers, no queries, no bodies."""

from __future__ import annotations

import json
import logging
import sys
from typing import Literal

LOG = logging.getLogger("cofuse.hub")
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


class Json(logging.Formatter):
    """A record as JSON: time, level, what, and what else was given (`extra`)."""

    def format(self, record: logging.LogRecord) -> str:
        row = {"time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S"), "level": record.levelname.lower()}
        row["what"] = record.getMessage()
        row |= {key: value for key, value in vars(record).items() if key not in _OWN}
        if record.exc_info:
            row["traceback"] = self.formatException(record.exc_info)
        return json.dumps(row, default=str)


def set_up(how: Literal["json", "text"]) -> None:
    """Send the hub's log lines to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Json() if how == "json" else logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    LOG.handlers = [handler]
    LOG.setLevel(logging.INFO)
    LOG.propagate = False
