"""Arguments and printing; the only room that reads the environment."""

from .app import main

__all__ = ["main"]
