"""What the OpenAPI document promises is kept, whatever comes: Schemathesis reads it, and asks a real hub."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path

import pytest

from cofuse.hub.access.tokens import PREFIX

from .contributions.bench import Bench, tuned
from .serving import HubServer

# Who may do what is looked at by test_every_route.py. `unsupported_method` is left out: the pages' paths begin with anything, so
# that a method that a path of the API does not have may find a page, which then is not there.
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
)
MANY = 10**9
PROGRAM = "from schemathesis.cli import schemathesis; schemathesis()"


class Place:
    """A hub with a model, a contribution and an upload; and what paths that lead to them hold."""

    def __init__(self, start_hub: Callable[..., HubServer], folder: Path) -> None:
        self.folder = folder
        limits = {f"limits.{name}": MANY for name in ("requests", "failures", "uploads", "contributions")}
        self.server = start_hub(limits)
        self.secret = self.server.token("root", "admin")
        self.server.token("spare", "admin")
        with closing(Bench.make(self.server, folder)) as bench:
            owner, _, name = bench.name.partition("/")
            self.there: Mapping[str, object] = {
                **{"owner": owner, "name": name, "account": "spare", "branch": "main", "rest": "main"},
                **{"number": bench.offered("ann", tuned(bench.base, 1)), "job": 1, "round_id": 1, "version": "v0.1.0"},
                **{"object_id": bench.commit, "key": bench.upload("owner", b"bytes"), "session": "0" * 16},
            }

    def ask(self, examples: int, *phases: str, secret: str | None, there: bool) -> None:
        """Ask for everything, with and without mistakes, and so many examples of each."""
        # Never a token's number: the first is that which is shown.
        paths = {"token_id": MANY, **(self.there if there else {})}
        settings = self.folder / "schemathesis.toml"
        settings.write_text("\n".join(["[parameters]", *(f'"path.{name}" = {said!r}' for name, said in paths.items())]))
        shown = [] if secret is None else ["--header", f"Authorization: Bearer {secret}"]
        done = subprocess.run(
            [
                *(sys.executable, "-c", PROGRAM, "--config-file", str(settings), "--no-color"),
                *("run", f"{self.server.url}/openapi.json", *shown, "--checks", ",".join(CHECKS)),
                *("--phases", ",".join(phases), "--max-examples", str(examples), "--generation-deterministic"),
                # That nothing wrong can be drawn for a path of plain words is no mistake of ours.
                *("--continue-on-failure", "--warnings", "off", "--suppress-health-check", "filter_too_much"),
            ],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        print(done.stdout[done.stdout.find("= SUMMARY =") :])
        assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-5000:]
        with self.server.client(self.secret) as client:
            assert client.get("/readyz").json()["ready"]
            assert client.get("/api/v1/me").json()["role"] == "admin"  # or most was refused
        assert PREFIX not in self.server.said()  # neither the token that was shown nor one that was made


@pytest.fixture
def place(start_hub: Callable[..., HubServer], tmp_path: Path) -> Place:
    return Place(start_hub, tmp_path)


def test_what_is_promised_is_kept(place: Place) -> None:
    place.ask(3, "fuzzing", secret=None, there=True)
    place.ask(3, "fuzzing", secret=place.secret, there=False)
    place.ask(2, "coverage", secret=place.secret, there=True)


@pytest.mark.slow
@pytest.mark.parametrize("there", [True, False], ids=["there", "anywhere"])
@pytest.mark.parametrize("known", [True, False], ids=["administrator", "nobody"])
def test_it_is_kept_often(place: Place, known: bool, there: bool) -> None:
    place.ask(200, "coverage", "fuzzing", secret=place.secret if known else None, there=there)
