"""ColD Fusion: contributors, contributions, screening, rounds.

`cofuse.evolve.run` needs torch and is imported by name; records can be read without it.
"""

from .records import read_records

__all__ = ["read_records"]
