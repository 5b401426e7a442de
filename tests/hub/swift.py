"""A real S3 server: OpenStack Swift, started for the tests that want one."""

from __future__ import annotations

import subprocess
import sys
import urllib.request
from datetime import timedelta
from pathlib import Path

import obstore
from obstore.store import S3Store

from cofuse.store.remotes import Account

USER, KEY = "test:tester", "testing"


class Swift:
    """A server that can be stopped, and started again with what it has."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = 0
        self.start()

    def start(self) -> None:
        script = Path(__file__).parents[1] / "store" / "remotes" / "swift_server.py"
        self._process = subprocess.Popen(
            [sys.executable, str(script), str(self.folder), str(self.port)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def account(self, patience: float = 20.0) -> Account:
        return Account(endpoint=self.endpoint, key=USER, secret=KEY, patience=patience)

    def client(self, bucket: str, prefix: str = "") -> S3Store:
        """A client that knows nothing of ours."""
        return S3Store(
            bucket,
            prefix=prefix or None,
            endpoint=self.endpoint,
            region="us-east-1",
            access_key_id=USER,
            secret_access_key=KEY,
            virtual_hosted_style_request=False,
            client_options={"allow_http": True},
        )

    def make_bucket(self, name: str) -> None:
        url = obstore.sign(self.client(name), "PUT", "", timedelta(minutes=1))
        with urllib.request.urlopen(urllib.request.Request(url, method="PUT")):
            pass
