"""Where a task's rows come from: one file and one row of the union each."""

from typing import Annotated

from pydantic import Field

from .digits import Digits
from .hub import Hub
from .parquet import Parquet

Source = Annotated[Digits | Hub | Parquet, Field(discriminator="source")]

__all__ = ["Digits", "Hub", "Parquet", "Source"]
