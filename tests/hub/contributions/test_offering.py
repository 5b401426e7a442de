"""Offering, and what may be done with what was offered: by whom, how often, and in what order."""

from __future__ import annotations

import secrets
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from .bench import Bench, body, tuned


def test_a_nonce_and_the_same_content_are_one_contribution(bench: Bench) -> None:
    data = bench.patch(tuned(bench.base, 1))
    said = {"nonce": "n1", "message": "words", "metrics": {"accuracy": 0.5}, "labels": ["a"]}
    first = bench.offer("ann", patch=bench.upload("ann", data), **said)
    again = bench.offer("ann", patch=bench.upload("ann", data), **said)
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json()["number"] == again.json()["number"]
    bench.work()  # its uploads are gone then; what was sent with their keys is known all the same
    assert bench.offer("ann", patch=bench.upload("ann", data), **said).json()["number"] == first.json()["number"]


@pytest.mark.parametrize(
    "other", [{"message": "other words"}, {"metrics": {"accuracy": 0.6}}, {"branch": "main", "labels": ["b"]}, None]
)
def test_a_nonce_with_other_content_is_a_conflict(bench: Bench, other: dict[str, Any] | None) -> None:
    said: dict[str, Any] = {"nonce": "n1", "message": "words", "metrics": {"accuracy": 0.5}, "labels": ["a"]}
    key = bench.upload("ann", bench.patch(tuned(bench.base, 1)))
    assert bench.offer("ann", patch=key, **said).status_code == 201
    if other is None:
        key = bench.upload("ann", bench.patch(tuned(bench.base, 2)))
    answer = bench.offer("ann", patch=key, **{**said, **(other or {})})
    assert answer.status_code == 409
    assert "nonce" in answer.json()["error"]


def test_somebody_elses_nonce_is_no_nonce_of_mine(bench: Bench) -> None:
    first = bench.offer("ann", patch=bench.upload("ann", bench.patch(tuned(bench.base, 1))), nonce="n")
    second = bench.offer("bob", patch=bench.upload("bob", bench.patch(tuned(bench.base, 2))), nonce="n")
    assert [first.json()["number"], second.json()["number"]] == [1, 2]


def test_the_same_offer_sent_many_times_at_once_is_one(bench: Bench) -> None:
    key = bench.upload("ann", bench.patch(tuned(bench.base, 1)))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: bench.offer("ann", patch=key, nonce="n"), range(8)))
    assert {one.status_code for one in found} == {201}
    assert {one.json()["number"] for one in found} == {1}


def test_somebody_elses_upload_is_no_upload(bench: Bench) -> None:
    key = bench.upload("ann", bench.patch(tuned(bench.base, 1)))
    assert bench.offer("eve", patch=key).status_code == 404


def test_an_unfinished_upload_is_refused(bench: Bench) -> None:
    client = bench.client("ann")
    key = client.post(f"/api/v1/repositories/{bench.name}/uploads", json={"size": 10}).json()["key"]
    assert bench.offer("ann", patch=key).status_code == 409


def test_a_base_that_the_branch_never_had_is_refused_with_the_reason(bench: Bench) -> None:
    key = bench.upload("ann", bench.patch(tuned(bench.base, 1)))
    side = bench.store.commit(bench.checkpoint(body(9)), message="elsewhere", branch="side", parents=[])
    answer = bench.offer("ann", patch=key, base=side.id)
    assert answer.status_code == 422
    assert "branch" in answer.json()["error"]
    assert bench.commit in answer.json()["expected"]
    assert bench.offer("ann", patch=key, base="0" * 64).status_code == 422
    assert bench.offer("ann", patch=key, base=bench.store.tree("main")).status_code == 422
    assert bench.offer("ann", patch=key, branch="none").status_code == 404
    assert bench.offer("ann", patch=key, branch="../../main").status_code == 404


def test_a_base_that_the_branch_had_is_good(bench: Bench) -> None:
    bench.store.commit(bench.checkpoint(body(3)), message="later", branch="main")
    number = bench.offered("ann", tuned(bench.base, 1), base=bench.commit)
    bench.work()
    assert bench.look(number)["state"] == "open"


def test_a_commit_that_does_not_come_from_the_branch_is_refused(bench: Bench) -> None:
    lonely = bench.store.commit(bench.checkpoint(body(9)), message="from nowhere", branch="side", parents=[])
    assert bench.offer("ann", commit=lonely.id).status_code == 422
    assert bench.offer("ann", commit=bench.commit).status_code == 422
    assert bench.offer("ann", commit="f" * 64).status_code == 422


def test_more_than_allowed_are_not_taken(bench: Bench) -> None:
    key = bench.upload("ann", bench.patch(tuned(bench.base, 1)))
    most = bench.hub.settings.limits.contributions
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: bench.offer("ann", patch=key).status_code, range(most + 8)))
    assert sorted(found) == [201] * most + [429] * 8
    bench.client("ann").post(f"{bench.url}/1/withdraw")
    assert bench.offer("ann", patch=key).status_code == 201


WRONG = [
    {},
    {"patch": "x", "commit": "0" * 64},
    {"patch": "x", "weights": {"a.safetensors": "y"}},
    {"weights": {"../a.safetensors": "y"}},
    {"weights": {"a/b.safetensors": "y"}},
    {"weights": {"a\u0000.safetensors": "y"}},
    {"weights": {"a.pt": "y"}},
    {"fisher": {"model.safetensors": "y"}, "patch": "x"},
    {"patch": "x", "title": ""},
    {"patch": "x", "title": "two\nlines"},
    {"patch": "x", "title": "nul \u0000"},
    {"patch": "x", "message": "nul \u0000"},
    {"patch": "x", "labels": ["\u0000"]},
    {"patch": "x", "labels": ["x" * 50]},
    {"patch": "x", "metrics": {"\u0000": 1}},
    {"patch": "x", "examples": 0},
    {"patch": "x", "examples": 2**70},
    {"patch": "x", "base": "main"},
    {"patch": "x", "surprise": 1},
    {"patch": "\ud800"},
    {"patch": "../../hub.sqlite"},
]


@pytest.mark.parametrize("said", WRONG, ids=range(len(WRONG)))
def test_what_is_no_offer_is_said_to_be_none(bench: Bench, said: dict[str, Any]) -> None:
    import json

    answer = bench.client("ann").post(
        bench.url, content=json.dumps({"title": "t", **said}), headers={"Content-Type": "application/json"}
    )
    assert 400 <= answer.status_code < 500
    assert answer.json()["error"]


# Who may do what


ROLES = (None, "read", "contribute", "maintain")
ACTS: dict[str, tuple[str, str, dict[str, Any] | None, str | None]] = {
    # method, path, body, the least role that may
    "list": ("GET", "", None, None),
    "read": ("GET", "/1", None, None),
    "comments": ("GET", "/1/comments", None, None),
    "offer": ("POST", "", {"title": "t", "commit": "0" * 64}, "contribute"),
    "comment": ("POST", "/1/comments", {"body": "words"}, "read"),
    "label others'": ("PATCH", "/1", {"labels": ["x"]}, "maintain"),
    "withdraw others'": ("POST", "/1/withdraw", None, "maintain"),
    "accept": ("POST", "/1/accept", None, "maintain"),
    "refuse": ("POST", "/1/refuse", {"reason": "because"}, "maintain"),
    "retry others'": ("POST", "/1/retry", None, "maintain"),
}


@pytest.mark.parametrize("act", ACTS)
def test_every_role_at_every_route(bench: Bench, act: str) -> None:
    method, path, value, least = ACTS[act]
    bench.offered("ann", tuned(bench.base, 1))
    for role in ROLES:
        client = bench.server.client(None if role is None else bench.server.token(f"x{secrets.token_hex(6)}", role))
        with client:
            answer = client.request(method, bench.url + path, json=value)
        allowed = least is None or (role is not None and ROLES.index(role) >= ROLES.index(least))
        assert (answer.status_code not in (401, 403)) == allowed, (role, answer.text)
        assert answer.status_code != 500


def test_a_private_repositorys_contributions_are_nobodys_business(bench: Bench) -> None:
    bench.offered("ann", tuned(bench.base, 1))
    bench.client("owner").patch(f"/api/v1/repositories/{bench.name}", json={"private": True})
    with bench.server.client(bench.server.token(f"x{secrets.token_hex(6)}", "maintain")) as client:
        for path in ("", "/1", "/1/comments"):
            assert client.get(bench.url + path).status_code == 404


def test_authors_withdraw_and_label_their_own_but_do_not_accept(bench: Bench) -> None:
    number = bench.offered("ann", tuned(bench.base, 1), labels=["nlp", "accepted"])
    mine = f"{bench.url}/{number}"
    assert bench.look(number)["labels"] == ["nlp"]
    assert bench.client("ann").patch(mine, json={"labels": ["accepted", "x"]}).json()["labels"] == ["x"]
    assert bench.client("ann").post(f"{mine}/accept").status_code == 403
    assert bench.client("bob").post(f"{mine}/withdraw").status_code == 403
    assert bench.client("ann").post(f"{mine}/withdraw").json()["state"] == "withdrawn"
    assert bench.client("ann").post(f"{mine}/withdraw").json()["state"] == "withdrawn"


def test_maintainers_accept_refuse_and_think_again(bench: Bench) -> None:
    number = bench.offered("ann", tuned(bench.base, 1))
    mine = f"{bench.url}/{number}"
    assert bench.client("owner").post(f"{mine}/accept").status_code == 409  # not looked at yet
    bench.work()
    assert bench.client("owner").post(f"{mine}/accept").json()["labels"] == ["accepted"]
    refused = bench.client("owner").post(f"{mine}/refuse", json={"reason": "too similar"}).json()
    assert (refused["state"], refused["reason"], refused["labels"]) == ("refused", "too similar", [])
    assert bench.client("owner").post(f"{mine}/refuse", json={"reason": "again"}).status_code == 409
    assert bench.client("owner").post(f"{mine}/accept").json()["state"] == "open"
    assert bench.client("bob").post(f"{mine}/comments", json={"body": "good"}).status_code == 201
    assert bench.client("owner").post(f"{mine}/comments", json={"body": "  "}).status_code == 400
    assert bench.events(number) == ["screened", "accepted", "refused", "accepted", ""]


def test_what_a_check_refused_is_not_waved_through_but_can_be_tried_again(bench: Bench) -> None:
    theirs = tuned(bench.base, 1)
    theirs["encoder.layer.0.output.dense.bias"][0] = float("nan")
    number = bench.offered("ann", theirs)
    mine = f"{bench.url}/{number}"
    bench.work()
    assert bench.client("owner").post(f"{mine}/accept").status_code == 409
    assert bench.client("ann").post(f"{mine}/retry").json()["state"] == "received"
    assert bench.client("ann").post(f"{mine}/retry").status_code == 409
    bench.work()
    assert bench.look(number)["state"] == "refused"
    assert bench.events(number) == ["refused", "retried", "refused"]


def test_pages_follow_one_another_and_filters_hold(bench: Bench) -> None:
    numbers = [
        bench.offered(who, tuned(bench.base, seed)) for seed, who in enumerate(["ann", "bob", "ann", "bob", "ann"])
    ]
    bench.client("ann").post(f"{bench.url}/{numbers[0]}/withdraw")
    client = bench.client("ann")
    seen, query = [], {"limit": 2}
    while True:
        page = client.get(bench.url, params=query).json()
        seen += [one["number"] for one in page["contributions"]]
        if page["next"] is None:
            break
        query["before"] = page["next"]
    assert seen == numbers[::-1]
    found = client.get(bench.url, params={"state": "withdrawn"}).json()["contributions"]
    assert [one["number"] for one in found] == [numbers[0]]
    ann = client.get(f"{bench.url}/{numbers[0]}").json()["account"]
    assert len(client.get(bench.url, params={"account": ann}).json()["contributions"]) == 3
    assert client.get(bench.url, params={"state": "nonsense"}).status_code == 400
    assert client.get(f"{bench.url}/999").status_code == 404
    assert client.get(f"{bench.url}/{2**31}").status_code == 422
