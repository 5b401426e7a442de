"""Contributions, the pull requests of models: offered, looked at, talked about, accepted or refused."""

from .offering import ACCEPTED, Offer, begin, offer
from .reading import checks, comments, find, page, said, said_check, said_comment, whole
from .reviewing import accept, comment, label, refuse, retry, tell, withdraw

__all__ = [
    "ACCEPTED",
    "Offer",
    "accept",
    "begin",
    "checks",
    "comment",
    "comments",
    "find",
    "label",
    "offer",
    "page",
    "refuse",
    "retry",
    "said",
    "said_check",
    "said_comment",
    "tell",
    "whole",
    "withdraw",
]
