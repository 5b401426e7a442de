"""Numbers from a model and data: protocols and intervals.

`cofuse.measure.protocols` needs torch and is imported by name.
"""

from .intervals import Interval, interval

__all__ = ["Interval", "interval"]
