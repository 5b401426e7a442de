"""Tables from one version of the hub to the next; `alembic` writes and runs the steps in `versions/`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy.exc import SQLAlchemyError

from ....errors import HubError

if TYPE_CHECKING:
    from ..engine import Database


def migrate(database: Database) -> None:
    """Run the steps that this database lacks, each whole or not at all; see `Database.migrate`."""
    try:
        with database.engine.connect() as connection, connection.begin():
            config = configured()
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except CommandError as error:
        raise HubError(
            "the database is of another version of the hub",
            got=str(error).splitlines()[0][:200],
            hint="a later cofuse has used it: install that",
        ) from None
    except SQLAlchemyError as error:
        raise HubError(
            "the hub cannot use its database",
            got=str(error).splitlines()[0][:200],
            hint="is the server running, and may this account make tables in it?",
        ) from None


def configured() -> Config:
    """Alembic's configuration, without a file."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    return config
