"""Numbers from a model and data: a folder a subject, each imported by name; most of it needs torch."""

from .intervals import Interval, interval

__all__ = ["Interval", "interval"]
