"""A real hub: `cofuse serve` in a process of its own, on a free port, with a folder of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from cofuse.hub.access.roles import Role
from cofuse.hub.access.tokens import find_account, make_account, make_token
from cofuse.hub.hub import Hub
from cofuse.hub.settings import Settings

SECONDS = 60.0
_running: list[HubServer] = []


def tell(report: pytest.TestReport) -> pytest.TestReport:
    """Add what the hubs that run have said to the report of a test that failed; for conftest.py's `pytest_runtest_makereport`."""
    if report.failed:
        report.sections += [(f"log of {server.url}", server.said()[-20_000:]) for server in _running]
    return report


class HubServer:
    """A hub that can be stopped or killed, and started again with what it has.

    Args:
        data: its folder.
        settings: changes of its settings, by dotted key: `limits.file`.
        workers: processes that work.
        environment: more of it.

    Attributes:
        url: where it answers; the same after each start.
        data: its folder.
        log: what it has said, a file.
    """

    def __init__(
        self,
        data: Path,
        settings: dict[str, object] | None = None,
        *,
        workers: int = 0,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.data, self.log = data, data.with_name(f"{data.name}.log")
        self.port, self._workers, self._settings = free_port(), workers, settings or {}
        self._environment = environment or {}
        # With a certificate it speaks TLS alone; whether that is a good one is for a test to say.
        self.url = f"http{'s' * ('server.certificate' in self._settings)}://127.0.0.1:{self.port}"
        self._hub: Hub | None = None
        self.start()

    @property
    def hub(self) -> Hub:
        """A hub on the same data, in this process: for looking into it, and for putting things there."""
        if self._hub is None:
            self._hub = Hub(Settings(data=self.data, database=self._settings.get("database")))  # type: ignore[arg-type]
        return self._hub

    def start(self) -> None:
        """Start it, and wait until it answers."""
        given = {f"COFUSE_HUB_{key.upper().replace('.', '__')}": str(value) for key, value in self._settings.items()}
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "cofuse", "serve", "--data", str(self.data)),
                    *("--port", str(self.port), "--workers", str(self._workers)),
                ],
                stdout=log,
                stderr=log,
                env={**os.environ, **given, **self._environment},
                start_new_session=True,  # its processes are ended together
            )
        give_up = time.monotonic() + SECONDS
        while True:
            assert self.process.poll() is None, self.said()
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/healthz", timeout=5, verify=False).status_code == 200:
                    return
            assert time.monotonic() < give_up, self.said()
            time.sleep(0.05)

    def kill(self) -> None:
        """End it as a power cut does: all its processes, at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(SECONDS)

    def stop(self) -> None:
        """End it in order."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(SECONDS)
            except subprocess.TimeoutExpired:
                self.kill()
                raise
        self.kill()  # what it has left behind

    def close(self) -> None:
        """End it for good."""
        self.stop()
        if self._hub is not None:
            self._hub.close()

    def said(self) -> str:
        """Its log."""
        return self.log.read_text(errors="replace")

    def memory(self) -> int:
        """Bytes that its processes have of their own."""
        rows: list[str] = []
        for number in (int(path.name) for path in Path("/proc").glob("[0-9]*")):
            with contextlib.suppress(OSError):
                if os.getsid(number) == self.process.pid:
                    rows += Path(f"/proc/{number}/smaps_rollup").read_text().splitlines()
        return 1024 * sum(int(row.split()[1]) for row in rows if row.startswith("Private_"))

    def token(self, name: str, role: str = "contribute", *, scope: str | None = None) -> str:
        """A token's secret; its account, of that role on the whole hub, is made if there is none."""
        with self.hub.database.writing() as change:
            account = find_account(change, name) or make_account(change, name, Role.of(role))
            return make_token(change, account, Role.of(scope or role))[1]

    def client(self, secret: str | None = None) -> httpx.Client:
        """An HTTP client that shows a token, if one is given; close it, or use it in a `with`."""
        headers = {} if secret is None else {"Authorization": f"Bearer {secret}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=SECONDS)

    def repository(self, secret: str, name: str, *, private: bool = False) -> str:
        """Make a repository in the name of a token's account; gives its full name."""
        with self.client(secret) as client:
            answer = client.post("/api/v1/repositories", json={"name": name, "private": private})
            assert answer.status_code == 201, answer.text
            return str(answer.json()["name"])


@contextlib.contextmanager
def serving(
    data: Path,
    settings: dict[str, object] | None = None,
    *,
    workers: int = 0,
    environment: dict[str, str] | None = None,
) -> Iterator[HubServer]:
    """A fresh hub for a block."""
    server = HubServer(data, settings, workers=workers, environment=environment)
    _running.append(server)
    try:
        yield server
    finally:
        _running.remove(server)
        server.close()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        found: int = probe.getsockname()[1]
        return found
