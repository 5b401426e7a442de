"""The course of rounds on a real hub with real workers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from cofuse.fuse import fuse
from cofuse.store import Store

from ..serving import HubServer
from .people import Model

Start = Callable[..., HubServer]


def cofuse(*arguments: str, secret: str, cache: Path) -> subprocess.CompletedProcess[str]:
    """Run the command line in somebody's name."""
    env = {"COFUSE_TOKEN": secret, "XDG_CACHE_HOME": str(cache), "XDG_CONFIG_HOME": str(cache), "PATH": "/usr/bin:/bin"}
    return subprocess.run(
        [sys.executable, "-c", "from cofuse.cli import main; main()", *arguments],
        env=env,
        capture_output=True,
        text=True,
        check=False,
        cwd=cache,
    )


@pytest.fixture
def server(start_hub: Start) -> HubServer:
    return start_hub({"limits.requests": 1_000_000}, workers=1)


def test_a_round_is_the_fuse_that_its_policy_says(server: HubServer, tmp_path: Path) -> None:
    model = Model(server, tmp_path, "story", "round: {contributions: 3}\nfuse: {method: median}")
    numbers = [model.offer(who, seed) for seed, who in enumerate(["bob", "eve", "kim"])]
    (release,) = model.released(1)
    assert release["version"] == "v0.1.0"
    assert model.tip() == release["commit"]
    assert model.states() == dict.fromkeys(numbers, "fused")
    given = [model.tuned(model.base, seed) for seed in range(3)]
    expected = fuse("median", given, base=model.here.checkpoint(model.base))
    found = model.store().checkpoint(release["commit"])
    for name in expected.names():
        assert torch.equal(found.read(name), expected.read(name))
    # Files are the base's, but for the card; what that was is kept.
    assert found.files["config.json"] == b'{"model_type": "tiny"}\n'
    assert found.files["BASE_README.md"].startswith(b"---\nlicense: mit")
    card = found.files["README.md"].decode()
    front = yaml.safe_load(card.split("---")[1])
    assert front["license_name"] == "apache-2.0, mit"
    assert all(f"| #{number} " in card for number in numbers)
    model.check()


def test_the_whole_life_of_a_model(server: HubServer, tmp_path: Path) -> None:
    """Two rounds, somebody is revoked, a replay, a rollback: by the command line."""
    model = Model(server, tmp_path, "life", "round: {contributions: 2}\nfuse: {method: norm_clip}")
    cache = tmp_path / "cache"
    cache.mkdir()
    bad, good = model.offer("mallory", 1), model.offer("bob", 2)
    model.released(1)
    model.offer("kim", 3)
    late = model.offer("mallory", 4, base=model.base)  # tuned from what is no longer the tip
    second = model.released(2)[1]
    waiting = model.offer("mallory", 5)
    model.until(lambda: model.states()[waiting] == "open")

    done = cofuse("revoke", model.address, "mallory", "-m", "poison", "--wait", secret=model.secret, cache=cache)
    assert done.returncode == 0, done.stderr
    assert [model.states()[n] for n in (bad, late, waiting, good)] == ["revoked", "revoked", "revoked", "fused"]
    third = model.released(3)[2]
    store = model.store()
    assert store.load_commit(third["commit"]).parents == (second["commit"],)  # history is not rewritten
    # Round 1 without them is bob's alone; kim's change, trained from the release, is put on top of it.
    base, bob = model.here.checkpoint(model.base), model.tuned(model.base, 2)
    one = model.releases()[0]["commit"]
    kim, start = model.tuned(one, 3), model.here.checkpoint(one)
    found = store.checkpoint(third["commit"])
    for name in base.names():
        torch.testing.assert_close(found.read(name), bob.read(name) + kim.read(name) - start.read(name))
    card = found.files["README.md"].decode()
    assert "Approximate" in card
    assert f"- #{bad} by mallory: revoked" in card
    last = model.ask("GET", f"/rounds/{third['round']}")
    assert last["figures"]["relative"] > 0
    assert last["without"] == [bad, late]

    for release in model.releases():
        done = cofuse("replay", f"{model.address}@{release['version']}", secret=model.secret, cache=cache)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout == f"the same: commit {release['commit']}\n"

    # Nobody comes back by a rollback.
    done = cofuse("rollback", model.address, "v0.1.0", "--wait", secret=model.secret, cache=cache)
    assert done.returncode == 1
    assert "holds what was revoked" in done.stderr
    model.policy("round: {contributions: 1}\nfuse: {method: norm_clip}")
    model.offer("kim", 6)
    model.released(4)
    done = cofuse("rollback", model.address, third["version"], "--wait", secret=model.secret, cache=cache)
    assert done.returncode == 0, done.stderr
    assert store.load_commit(model.tip()).tree == store.load_commit(third["commit"]).tree
    assert model.ask("GET", "/policies/main")["paused"] == f"rolled back to {third['version']}"
    assert len(model.releases()) == 5
    done = cofuse("replay", f"{model.address}@{model.releases()[-1]['version']}", secret=model.secret, cache=cache)
    assert done.returncode == 0, done.stdout + done.stderr

    # What no release has is taken out without a round.
    alone = model.offer("eve", 7)
    revoke = ("revoke", model.address, "--contribution", str(alone), "--wait")
    done = cofuse(*revoke, secret=model.secret, cache=cache)
    assert done.stdout.splitlines() == [f"revoked: #{alone}", "nothing that was released has them"]
    assert len(model.releases()) == 5


def test_a_clone_replays_a_release(server: HubServer, tmp_path: Path) -> None:
    model = Model(server, tmp_path, "cloned", "round: {contributions: 2}")
    model.offer("bob", 1)
    model.offer("kim", 2)
    model.released(1)
    cache = tmp_path / "cache"
    cache.mkdir()
    assert cofuse("clone", model.address, "copy", secret=model.secret, cache=cache).returncode == 0
    env = {"COFUSE_TOKEN": model.secret, "XDG_CACHE_HOME": str(cache), "XDG_CONFIG_HOME": str(cache)}
    done = subprocess.run(
        [sys.executable, "-c", "from cofuse.cli import main; main()", "replay", "v0.1.0", "--json"],
        env=env,
        cwd=cache / "copy",
        capture_output=True,
        text=True,
        check=False,
    )
    assert '"same": true' in done.stdout, done.stdout + done.stderr
    assert Store.find(cache / "copy") is not None


def test_a_worker_elsewhere_gives_the_same_release(start_hub: Start, tmp_path: Path) -> None:
    """The same contributions, fused on the hub's machine and by a worker that has only a URL."""
    commits = []
    for place in ("here", "there"):
        server = start_hub({"limits.requests": 1_000_000}, workers=1 if place == "here" else 0)
        worker = None
        if place == "there":
            admin = server.token("worker", "admin")
            env = {"COFUSE_TOKEN": admin, "XDG_CACHE_HOME": str(tmp_path / "away"), "XDG_CONFIG_HOME": str(tmp_path)}
            with (tmp_path / "worker.log").open("w") as log:
                worker = subprocess.Popen(
                    [sys.executable, "-c", "from cofuse.cli import main; main()", "work", "--hub", server.url],
                    env=env,
                    stdout=subprocess.DEVNULL,
                    stderr=log,
                )
        try:
            (tmp_path / place).mkdir()
            model = Model(server, tmp_path / place, "same", "round: {contributions: 2}\nfuse: {method: ties, seed: 3}")
            model.offer("bob", 1)
            model.offer("kim", 2)
            commits.append(model.released(1)[0]["commit"])
            model.check()
        finally:
            if worker is not None:
                worker.terminate()
                assert worker.wait(30) == 0, (tmp_path / "worker.log").read_text()
    assert commits[0] == commits[1]
