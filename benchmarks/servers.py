"""A hub, and an nginx beside it, of one process each, for as long as a benchmark wants them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx


@contextmanager
def hub_on(folder: Path) -> Iterator[tuple[int, int]]:
    """A hub on a folder, which refuses nobody for asking often: its port and its process."""
    settings = folder.with_name("settings.yaml")
    settings.write_text(json.dumps({"data": str(folder), "limits": {"requests": 10**9}}))
    process = subprocess.Popen(
        [sys.executable, "-m", "cofuse", "serve", "--settings", str(settings), "--port", "0", "--workers", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # requests of more than a second are logged
        text=True,
    )
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline().rpartition(":")[2])
        wait(port, "/healthz")
        yield port, process.pid
    finally:
        process.terminate()
        process.wait()


@contextmanager
def nginx_on(folder: Path, file: Path) -> Iterator[int]:
    """An nginx that gives one file, as `/one`: its port."""
    (folder / "www").mkdir()
    os.link(file, folder / "www" / "one")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "nginx.conf").write_text(
        f"user root; worker_processes 1; daemon off; pid {folder}/pid; error_log {folder}/errors;"
        "events { worker_connections 512; } http { access_log off; sendfile on; tcp_nopush on; default_type application/json;"
        f"server {{ listen 127.0.0.1:{port}; root {folder}/www; }} }}"
    )
    process = subprocess.Popen(["nginx", "-c", str(folder / "nginx.conf")], stderr=subprocess.DEVNULL)
    try:
        wait(port, "/one", method="HEAD")
        yield port
    finally:
        process.terminate()
        process.wait()


def wait(port: int, path: str, method: str = "GET") -> None:
    """Until somebody answers there."""
    give_up = time.monotonic() + 60
    while True:
        try:
            httpx.request(method, f"http://127.0.0.1:{port}{path}").raise_for_status()
            return
        except httpx.HTTPError:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.1)
