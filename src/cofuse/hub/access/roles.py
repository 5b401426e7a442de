"""Roles, from least to most, and what each may do."""

from __future__ import annotations

from enum import IntEnum


class Role(IntEnum):
    """What somebody may do; each may do all that those before it may.

    A token has one (its scope), an account has one on the whole hub, and may have others on organisations and repositories.
    What a request may do on a repository is the lesser of its token's scope and its account's highest role there.

    >>> Role.of("maintain") > Role.CONTRIBUTE
    True
    """

    NONE = 0
    READ = 1  # see and download; comment
    CONTRIBUTE = 2  # offer contributions, withdraw their own
    MAINTAIN = 3  # push, accept and refuse, set policies, revoke, roll back; make repositories in their own name
    ADMIN = 4  # everything, everywhere: accounts, tokens, quotas, the audit log, workers

    @classmethod
    def of(cls, word: str) -> Role:
        """The role that a word names.

        Raises:
            KeyError: none.
        """
        return cls[word.upper()]

    @property
    def word(self) -> str:
        """How it is written."""
        return self.name.lower()


WORDS = tuple(role.word for role in Role if role)
