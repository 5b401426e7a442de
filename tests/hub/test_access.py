"""Who may do what: roles, tokens and rates, on a hub without a server."""

from __future__ import annotations

import itertools
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cofuse.errors import CofuseError
from cofuse.hub.access.limits import Rate
from cofuse.hub.access.roles import Role
from cofuse.hub.access.tokens import PREFIX, check_name, digest, make_account, make_token
from cofuse.hub.access.visitor import NOBODY, Visitor
from cofuse.hub.database import Account, Grant, Member, Repository, Token
from cofuse.hub.faults import Conflict, Denied, Invalid, NoRepository
from cofuse.hub.hub import Hub
from cofuse.hub.repositories import find, make, role_on, store_folder, visible
from cofuse.store import Store


def somebody(hub: Hub, name: str, role: Role, *, scope: Role = Role.ADMIN) -> tuple[Visitor, str]:
    with hub.database.writing() as change:
        account = make_account(change, name, role)
        _, secret = make_token(change, account, scope)
    found = hub.visitors.token(secret)
    assert found is not None
    return found, secret


# What a visitor may do on a repository


@pytest.mark.parametrize("private", [False, True])
def test_roles_on_a_repository(hub: Hub, private: bool) -> None:
    """Every account's role, token's scope, role granted and role in the owning organisation, against the rule in words."""
    with hub.database.writing() as change:
        owner = make_account(change, "org", Role.READ, organisation=True)
        repository = Repository(owner_id=owner.id, name="m", key="0" * 32, private=private, created=0.0, updated=0.0)
        change.add(repository)
        ann = make_account(change, "ann", Role.READ)
        change.flush()
        for own, scope, granted, member in itertools.product(list(Role)[1:], list(Role)[1:], Role, Role):
            for table, at, given_role in (
                (Grant, {"repository_id": repository.id, "account_id": ann.id}, granted),
                (Member, {"organisation_id": owner.id, "account_id": ann.id}, member),
            ):
                there = change.get(table, tuple(at.values()))
                if there is not None:
                    change.delete(there)
                    change.flush()
                if given_role:
                    change.add(table(**at, role=given_role.word))
                    change.flush()
            visitor = Visitor(ann.id, "ann", scope, min(scope, own))
            on_the_hub = own if own == Role.ADMIN and scope == Role.ADMIN else Role.NONE
            if not private:
                on_the_hub = max(own, Role.READ)
            expected = min(scope, max(on_the_hub, granted, member))
            assert role_on(change, visitor, repository) == expected, (own, scope, granted, member)


def test_nobody_reads_what_is_public_and_sees_nothing_of_what_is_private(hub: Hub) -> None:
    ann, _ = somebody(hub, "ann", Role.MAINTAIN)
    with hub.database.writing() as change:
        make(change, ann, hub.repositories, "open")
        make(change, ann, hub.repositories, "closed", private=True)
    with hub.database.reading() as look:
        assert find(look, NOBODY, "ann", "open").role == Role.READ
        assert [r.name for r in look.scalars(visible(NOBODY))] == ["open"]
        with pytest.raises(NoRepository) as closed:
            find(look, NOBODY, "ann", "closed")
        with pytest.raises(NoRepository) as missing:
            find(look, NOBODY, "ann", "missing")
    assert str(closed.value).replace("closed", "missing") == str(missing.value)


def test_what_is_listed_is_what_can_be_seen(hub: Hub) -> None:
    people = [
        somebody(hub, name, role)[0] for name, role in (("a", Role.READ), ("b", Role.MAINTAIN), ("c", Role.ADMIN))
    ]
    with hub.database.writing() as change:
        for owner, private in itertools.product(people[1:], (False, True)):
            make(change, owner, hub.repositories, f"m{private:d}", private=private)
        granted = make(change, people[1], hub.repositories, "granted", private=True)
        change.add(Grant(repository_id=granted.id, account_id=people[0].account, role="read"))
    with hub.database.reading() as look:
        everything = list(look.scalars(visible(people[2])))
        assert len(everything) == 5
        for visitor in (*people, NOBODY):
            listed = {r.id for r in look.scalars(visible(visitor))}
            assert listed == {r.id for r in everything if role_on(look, visitor, r) >= Role.READ}


def test_a_repository_is_a_store_in_a_folder_that_nobody_named(hub: Hub) -> None:
    ann, _ = somebody(hub, "ann", Role.MAINTAIN)
    with hub.database.writing() as change:
        made = make(change, ann, hub.repositories, "minilm")
    assert re.fullmatch("[0-9a-f]{32}", made.key)
    assert Store.open(store_folder(hub.repositories, made.key)).branches() == {}
    assert not [p for p in hub.settings.data.rglob("*") if "minilm" in p.name or "ann" in p.name]
    with pytest.raises(Conflict), hub.database.writing() as change:
        make(change, ann, hub.repositories, "minilm")


@pytest.mark.parametrize("role", [Role.READ, Role.CONTRIBUTE])
def test_repositories_are_made_by_those_who_maintain(hub: Hub, role: Role) -> None:
    ann, _ = somebody(hub, "ann", role)
    bob, _ = somebody(hub, "bob", Role.MAINTAIN)
    for visitor, owner in ((ann, None), (bob, "ann"), (bob, "none")):
        with pytest.raises(Denied), hub.database.writing() as change:
            make(change, visitor, hub.repositories, "m", owner=owner)


# Tokens


def test_no_secret_is_kept(hub: Hub) -> None:
    _, secret = somebody(hub, "ann", Role.ADMIN)
    assert secret.startswith(PREFIX)
    assert len(secret) >= len(PREFIX) + 43  # 256 bits
    hub.close()
    kept = b"".join(p.read_bytes() for p in hub.settings.data.rglob("*") if p.is_file())
    assert digest(secret).encode() in kept
    assert secret.encode() not in kept
    assert secret[len(PREFIX) + 5 :].encode() not in kept


def test_a_revoked_expired_or_disabled_token_is_nobodys_at_once(hub: Hub) -> None:
    def stop(change: str) -> None:
        visitor, secret = somebody(hub, change, Role.ADMIN)
        with hub.database.writing() as transaction:
            token = transaction.get_one(Token, visitor.token)
            if change == "revoked":
                token.revoked = time.time()
            elif change == "expired":
                token.expires = time.time() - 1
            else:
                transaction.get_one(Account, visitor.account).disabled = True
        assert hub.visitors.token(secret) is None

    for change in ("revoked", "expired", "disabled"):
        stop(change)


def test_a_token_made_elsewhere_is_known_and_one_revoked_elsewhere_is_forgotten_within_a_second(hub: Hub) -> None:
    other = Hub(hub.settings)
    ann, secret = somebody(other, "ann", Role.ADMIN)
    assert hub.visitors.token(secret) == ann
    with other.database.writing() as change:
        change.get_one(Token, ann.token).revoked = time.time()
    give_up = time.monotonic() + 1
    while hub.visitors.token(secret) is not None:
        assert time.monotonic() < give_up
        time.sleep(0.02)
    other.close()


def test_a_scope_bounds_what_an_account_may_do(hub: Hub) -> None:
    ann, _ = somebody(hub, "ann", Role.ADMIN, scope=Role.READ)
    assert ann.role == Role.READ
    with pytest.raises(Denied):
        ann.must(Role.CONTRIBUTE)


@given(st.text(max_size=120))
def test_names_are_parts_of_paths_and_nothing_else(name: str) -> None:
    try:
        check_name(name)
    except Invalid:
        return
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,96}", name)
    assert not name.startswith((".", "-"))
    assert ".." not in name


@pytest.mark.parametrize(
    "name", ["api", "API", "static", "..", "a/b", "a\0", "", ".git", "x.git", "ａ", "a b", "a" * 97]
)
def test_names_that_would_hide_or_leave_something_are_refused(name: str) -> None:
    with pytest.raises(CofuseError):
        check_name(name)


# Rates


@given(st.integers(1, 50), st.lists(st.sampled_from("ab"), max_size=120))
def test_a_rate_lets_so_many_through_for_each(most: int, asked: list[str]) -> None:
    rate = Rate(most)
    began = time.monotonic()
    let = {who: sum(rate.take(who) for one in asked if one == who) for who in "ab"}
    again = int((time.monotonic() - began) * most / 60) + 1  # what filled meanwhile
    for who in "ab":
        assert min(most, asked.count(who)) <= let[who] <= min(most + again, asked.count(who))
