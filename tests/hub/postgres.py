"""A real PostgreSQL, started for the tests that want one, and gone with them."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

SECONDS = 60


def programs() -> Path | None:
    """The folder of PostgreSQL's programs, None where it is not installed."""
    found = shutil.which("postgres")
    known = [Path(found).resolve().parent] if found else []
    known += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in known if (folder / "initdb").exists()), None)


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """The URL of an empty database, on a server that listens on a socket in a folder of its own; skips where there is none."""
    folder = programs()
    if folder is None:
        pytest.skip("PostgreSQL is not installed")
    # It refuses to run as root.
    user = "nobody" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    with tempfile.TemporaryDirectory(prefix="pg", dir="/tmp", ignore_cleanup_errors=True) as root:
        if os.geteuid() == 0:
            shutil.chown(root, user)
        data, env = f"{root}/data", {"PATH": os.environ["PATH"], "LC_ALL": "C", "HOME": root}

        def run(program: str, *arguments: str) -> None:
            done = subprocess.run(
                [folder / program, *arguments],
                user=user,
                env=env,
                cwd=root,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr

        run("initdb", "-D", data, "-U", "cofuse", "-A", "trust", "-E", "UTF8", "--no-sync")
        with open(f"{root}/log", "wb") as log:
            server = subprocess.Popen(
                [folder / "postgres", "-D", data, "-k", root, "-h", ""],
                user=user,
                env=env,
                cwd=root,
                stdout=log,
                stderr=log,
            )
        try:
            give_up = time.monotonic() + SECONDS
            while subprocess.run(
                [folder / "pg_isready", "-q", "-h", root], user=user, env=env, cwd=root, check=False
            ).returncode:
                assert server.poll() is None, Path(f"{root}/log").read_text()
                assert time.monotonic() < give_up, "PostgreSQL does not answer"
                time.sleep(0.1)
            run("createdb", "-h", root, "-U", "cofuse", "hub")
            yield f"postgresql://cofuse@/hub?host={root}"
        finally:
            server.send_signal(2)  # fast shutdown
            server.wait(SECONDS)
