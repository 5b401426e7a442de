"""Pages of a hub with 100,000 contributions: they look at what they show, not at what there is."""

from __future__ import annotations

import time
from typing import Any

import pytest
from sqlalchemy import event, insert, select
from starlette.testclient import TestClient

from cofuse.hub.access.roles import Role
from cofuse.hub.access.tokens import make_account
from cofuse.hub.app import make_app
from cofuse.hub.database import Contribution, Release, Repository, Round, Share
from cofuse.hub.hub import Hub
from cofuse.hub.repositories import store_folder
from cofuse.hub.settings import Settings
from cofuse.hub.states import Offered
from cofuse.store import Store

MANY = 100_000
STEPS = 400_000  # of SQLite's machine for one page; going through all of the rows takes many times more


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A hub whose one account has offered everything to one model."""
    made = Hub(Settings(data=tmp_path_factory.mktemp("many")))
    made.database.migrate()
    with made.database.writing() as t:
        ann = make_account(t, "ann", Role.MAINTAIN)
        row = Repository(owner_id=ann.id, name="model", key="0" * 32, suite_hash="s" * 64, created=1.0, updated=1.0)
        t.add(row)
        t.flush()
        Store.init(store_folder(made.repositories, row.key))
        states = list(Offered)
        fixed = {
            "repository_id": row.id,
            "account_id": ann.id,
            "branch": "main",
            "base": "b" * 64,
            "source": "commit",
            "sent": {},
            "title": "x",
            "metrics": {},
            "labels": [],
            "created": 1.0,
            "updated": 1.0,
        }
        rows = [
            {**fixed, "number": i, "nonce": str(i), "state": "received" if i == 3 else states[1 + i % 6]}
            for i in range(1, MANY + 1)
        ]
        t.execute(insert(Contribution), rows)
        first = select(Contribution.number, Contribution.id).where(Contribution.number <= 4000)
        numbers = dict(t.execute(first).all())
        rounds = [
            {
                "repository_id": row.id,
                "branch": "main",
                "number": i,
                "kind": "round",
                "state": "published",
                "base": "b" * 64,
                "policy": "",
                "plan": {},
                "verdict": {},
                "figures": {},
                "created": 1.0,
                "updated": 1.0,
            }
            for i in range(1, 201)
        ]
        t.execute(insert(Round), rounds)
        ids = list(t.scalars(select(Round.id).order_by(Round.id)))
        t.execute(
            insert(Share),
            [
                {"round_id": r, "contribution_id": numbers[1 + 20 * k + j], "weight": 1.0, "dropped": ""}
                for k, r in enumerate(ids)
                for j in range(20)
            ],
        )
        t.execute(
            insert(Release),
            [
                {
                    "repository_id": row.id,
                    "branch": "main",
                    "version": f"v0.{k}.0",
                    "commit": f"{k:064x}",
                    "round_id": r,
                    "created": 1.0,
                }
                for k, r in enumerate(ids)
            ],
        )
    yield made
    made.close()


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/?q=model",
        "/leaderboard",
        "/ann",
        "/ann?before=50000",
        "/ann/model",
        "/ann/model/rounds",
        "/ann/model/rounds/main/100",
        "/ann/model/contributions",
        "/ann/model/contributions?before=50000",
        "/ann/model/contributions?state=open",
        "/ann/model/contributions?state=open&branch=main&before=70000",
        "/ann/model/contributions?account=ann",
        "/ann/model/contributions/77777",
    ],
)
def test_a_page_does_not_go_through_them(hub: Hub, path: str) -> None:
    steps = [0]

    def count(connection: Any, _: Any, __: Any) -> None:
        def more() -> None:
            steps[0] += 1000

        connection.set_progress_handler(more, 1000)

    event.listen(hub.database.engine, "checkout", count)
    try:
        client = TestClient(make_app(hub), headers={"Accept": "text/html"})
        client.get(path)
        steps[0], began = 0, time.perf_counter()
        answer = client.get(path)
        seconds = time.perf_counter() - began
    finally:
        event.remove(hub.database.engine, "checkout", count)
    assert answer.status_code == 200, answer.text
    assert steps[0] < STEPS, (steps[0], seconds)
