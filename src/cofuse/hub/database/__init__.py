"""The hub's own state: who, what was asked for, what was decided. Weights and their history are in the stores."""

from .engine import Database
from .tables import (
    Account,
    Audit,
    Branch,
    Check,
    Comment,
    Contribution,
    Evaluation,
    Grant,
    Job,
    Member,
    Release,
    Repository,
    Round,
    Session,
    Share,
    Token,
    Upload,
)

__all__ = [
    "Account",
    "Audit",
    "Branch",
    "Check",
    "Comment",
    "Contribution",
    "Database",
    "Evaluation",
    "Grant",
    "Job",
    "Member",
    "Release",
    "Repository",
    "Round",
    "Session",
    "Share",
    "Token",
    "Upload",
]
