"""Where tasks are that are named by a word."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

Tasks = Annotated[
    Path | None, typer.Option("--tasks", help="Folder of tasks that are named by a word; COFUSE_TASKS by default.")
]


def tasks_folder(named: Path | None) -> Path | None:
    """The folder of tasks: the one that was named, else COFUSE_TASKS."""
    folder = named if named is not None else os.environ.get("COFUSE_TASKS")
    return Path(folder) if folder else None


def task_folders(named: Path | None) -> tuple[Path, ...]:
    """Where a task is looked for: a folder of tasks is only asked where the task is not found from here."""
    folder = tasks_folder(named)
    return () if folder is None else (Path(), folder)
