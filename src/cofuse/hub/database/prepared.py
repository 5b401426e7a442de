"""A statement made ready once, for SQLite: what SQLAlchemy does at each run takes several times as long as SQLite itself."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Mapping, Sequence
from typing import Any, cast

from sqlalchemy import Dialect, Select


class Prepared:
    """A select whose every value is a `bindparam`, a number or a text; its rows have the selected names as attributes.

    Args:
        statement: the select.
        dialect: of the database.
    """

    def __init__(self, statement: Select[Any], dialect: Dialect) -> None:
        compiled = statement.compile(dialect=dialect)
        columns = statement.selected_columns
        self._text, self._names = compiled.string, compiled.positiontup or ()
        self._row = cast("Any", namedtuple)("Row", columns.keys())._make
        given = [column.type.dialect_impl(dialect).result_processor(dialect, None) for column in columns]
        # How what SQLite gives becomes what Python has; most columns are that already.
        self._reads = [(place, read) for place, read in enumerate(given) if read is not None]

    def rows(self, connection: Any, values: Mapping[str, Any]) -> Sequence[Any]:
        """What it selects, by a connection of the driver's."""
        return [
            self._made(row) for row in connection.execute(self._text, [values[name] for name in self._names]).fetchall()
        ]

    def _made(self, found: Sequence[Any]) -> Any:
        row = list(found)
        for place, read in self._reads:
            row[place] = read(row[place])
        return self._row(row)
