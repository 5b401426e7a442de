"""A git repository with our filter in it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from cofuse.store import Store

COFUSE = [sys.executable, "-P", "-m", "cofuse", "git"]


class Git:
    """A repository, and git and `cofuse git` in it."""

    def __init__(self, top: Path, home: Path) -> None:
        self.top = top
        self.home = home
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("GIT_")},
            "HOME": str(home),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": os.devnull,
            **{f"GIT_{who}_{what}": "a@b.c" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
        }

    def run(self, *command: str, given: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            command, cwd=self.top, env=self.environment, input=given, capture_output=True, check=False, timeout=120
        )

    def __call__(self, *arguments: str, given: bytes | None = None) -> str:
        """What git prints; it must succeed."""
        return self.done(self.run("git", *arguments, given=given))

    def cofuse(self, *arguments: str) -> str:
        """What `cofuse git` prints; it must succeed."""
        return self.done(self.run(*COFUSE, *arguments))

    def fails(self, *arguments: str) -> str:
        """What git complains of; it must fail."""
        done = self.run("git", *arguments)
        assert done.returncode != 0
        assert b"Traceback" not in done.stderr
        return done.stderr.decode()

    @staticmethod
    def done(done: subprocess.CompletedProcess[bytes]) -> str:
        assert done.returncode == 0, done.stderr.decode()
        assert b"Traceback" not in done.stderr
        return done.stdout.decode()

    def commit(self, path: str, data: bytes, message: str = "x") -> None:
        (self.top / path).parent.mkdir(parents=True, exist_ok=True)
        (self.top / path).write_bytes(data)
        self("add", "-A")
        self("commit", "-qm", message)

    def sha(self, path: str) -> str:
        return hashlib.sha256((self.top / path).read_bytes()).hexdigest()

    def kept(self, spec: str) -> bytes:
        """What git itself keeps."""
        return self.run("git", "cat-file", "blob", spec).stdout

    @property
    def store(self) -> Store:
        return Store.open(self.top / ".git")
