"""Records -> summary, tables, plots, a page.

matplotlib and jinja2 (`pip install "cofuse[report]"`) are loaded when a picture or a page is made, not before.
"""

from .files import write_report
from .summary import Difference, Row, Summary, summarize
from .terminal import tables

__all__ = ["Difference", "Row", "Summary", "summarize", "tables", "write_report"]
