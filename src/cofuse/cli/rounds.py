"""Verbs of who looks after a model on a hub: round, policy, suite, releases, revoke, rollback; and work, which does a hub's work."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..credentials import machine
from ..errors import DocumentError, HubError
from ..store.remotes.addresses import quoted
from .hubs import Address, on_hub, plain
from .tasks import Tasks, tasks_folder
from .weights import Json

if TYPE_CHECKING:
    from ..hub.client import HubClient

round_ = typer.Typer(help="Rounds of a branch on a hub.", no_args_is_help=True, rich_markup_mode=None)
policy = typer.Typer(help="Policies of branches on a hub.", no_args_is_help=True, rich_markup_mode=None)
Branch = Annotated[str, typer.Option("--branch", help="The branch.")]
Id = Annotated[int, typer.Argument(metavar="ID", min=1, help="The round's id; see cofuse round list.")]
Wait = Annotated[bool, typer.Option("--wait", help="Wait until it has come to an end, or waits for you.")]
_BEGINS = 120.0  # seconds that a round which is owed may take to begin, with another one under way
WAITS = frozenset({"published", "abandoned", "held", "failed"})


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    for group, verbs in GROUPS.items():
        for name, verb in verbs.items():
            (group or app).command(name)(verb)
    app.add_typer(round_, name="round")
    app.add_typer(policy, name="policy")


# Rounds


def start(address: Address, branch: Branch = "main", wait: Wait = False, as_json: Json = False) -> None:
    """Begin a round now, with the contributions that are open."""
    with on_hub(address) as hub:
        _end(hub, hub.ask("POST", "/rounds", {"branch": branch}), wait, as_json)


def list_rounds(
    address: Address,
    branch: Annotated[str | None, typer.Option("--branch", help="Only of this branch.")] = None,
    as_json: Json = False,
) -> None:
    """The newest fifty."""
    with on_hub(address) as hub:
        found = hub.ask("GET", "/rounds", query={} if branch is None else {"branch": branch})["rounds"]
    if as_json:
        print(json.dumps(found))
        return
    for one in found:
        print(_line(one))


def show(address: Address, round_id: Id, as_json: Json = False) -> None:
    """What went in, what the gate said, how far it moved."""
    with on_hub(address) as hub:
        found = hub.ask("GET", f"/rounds/{round_id}")
    if as_json:
        print(json.dumps(found))
        return
    print(_line(found))
    for one in found["shares"]:
        out = f", left out: {one['dropped']}" if one["dropped"] else ""
        print(
            f"  #{one['contribution']} {plain(one['title'])} by {plain(one['account'])}, weight {one['weight']:g}{plain(out)}"
        )
    moved = found["figures"].get("relative")
    if moved is not None:
        print(f"  moved by {100 * moved:.3g} % of its length")
    for reason in found["verdict"].get("reasons", ()):
        print(f"  gate: {plain(reason)}")


def publish(address: Address, round_id: Id, wait: Wait = False, as_json: Json = False) -> None:
    """Release a round that the gate has held."""
    _decide(address, round_id, "publish", wait, as_json)


def abandon(address: Address, round_id: Id, as_json: Json = False) -> None:
    """Give a round up: nothing is released, its contributions are free again, the branch waits."""
    _decide(address, round_id, "abandon", False, as_json)


def retry(address: Address, round_id: Id, wait: Wait = False, as_json: Json = False) -> None:
    """Try again what has failed."""
    _decide(address, round_id, "retry", wait, as_json)


# Policies


def show_policy(address: Address, branch: Branch = "main") -> None:
    """Print a branch's policy."""
    with on_hub(address) as hub:
        found = hub.ask("GET", f"/policies/{quoted(branch)}")
    print(found["policy"], end="" if found["policy"].endswith("\n") else "\n")
    if found["paused"]:
        print(f"# waits for a maintainer: {plain(found['paused'])}")


def set_policy(
    address: Address,
    file: Annotated[Path, typer.Argument(help="YAML; see docs/formats/hub-policy.md.")],
    branch: Branch = "main",
) -> None:
    """Give a branch a policy; one that waits goes on."""
    with on_hub(address) as hub:
        hub.ask("PUT", f"/policies/{quoted(branch)}", {"text": _text(file)})
    print(f"{branch} has a policy")


def remove_policy(address: Address, branch: Branch = "main") -> None:
    """Let no more rounds begin by themselves."""
    with on_hub(address) as hub:
        hub.ask("DELETE", f"/policies/{quoted(branch)}")
    print(f"{branch} has no policy any more")


def set_suite(
    address: Address,
    file: Annotated[Path | None, typer.Argument(help="A suite whose tasks are names; printed when left out.")] = None,
) -> None:
    """Show what versions are judged by, or give the repository a suite."""
    with on_hub(address) as hub:
        if file is None:
            print(hub.ask("GET", "/suite")["text"], end="")
            return
        found = hub.ask("PUT", "/suite", {"text": _text(file)})
        print(f"versions are judged by it from now on: {found['hash'][:12]}")


# Releases


def releases(address: Address, as_json: Json = False) -> None:
    """The newest fifty releases."""
    with on_hub(address) as hub:
        found = hub.ask("GET", "/releases")["releases"]
    if as_json:
        print(json.dumps(found))
        return
    for one in found:
        print(f"{one['version']}  {one['commit'][:12]}  {one['branch']}")


def revoke(
    address: Address,
    account: Annotated[str | None, typer.Argument(help="Whose contributions are taken out.")] = None,
    contribution: Annotated[
        int | None, typer.Option("--contribution", min=1, help="Only this one, by its number.")
    ] = None,
    reason: Annotated[str, typer.Option("-m", "--reason", help="What they are shown.")] = "",
    wait: Wait = False,
    as_json: Json = False,
) -> None:
    """Take somebody's contributions out: rounds that had them are fused anew without them, and released on top."""
    if (account is None) == (contribution is None):
        raise HubError("say what is revoked", expected="an account, or --contribution N")
    with on_hub(address) as hub:
        found = hub.ask("POST", "/revocations", {"account": account, "contribution": contribution, "reason": reason})
        numbers = [f"#{number}" for number in found["revoked"]]
        if not as_json:
            print(f"revoked: {', '.join(numbers) or 'nothing'}")
        if not wait:
            if as_json:
                print(json.dumps(found))
            return
        _end(hub, _revocation(hub, found["released"]), True, as_json)


def rollback(
    address: Address,
    version: Annotated[str, typer.Argument(help="An earlier release: v0.1.0.")],
    wait: Wait = False,
    as_json: Json = False,
) -> None:
    """Release an earlier version again, on top; the branch then waits for you."""
    with on_hub(address) as hub:
        _end(hub, hub.ask("POST", "/rollbacks", {"version": version}), wait, as_json)


# Work


def work(
    hub: Annotated[str | None, typer.Option("--hub", metavar="URL", help="A hub elsewhere, by its URL.")] = None,
    data: Annotated[Path | None, typer.Option("--data", help="A hub's folder on this machine.")] = None,
    file: Annotated[Path | None, typer.Option("--settings", help="The hub's settings, with --data.")] = None,
    folder: Annotated[
        Path | None, typer.Option("--folder", help="Where stores are kept, with --hub; in the cache by default.")
    ] = None,
    kind: Annotated[list[str] | None, typer.Option("--kind", help="Only this kind of work; may be repeated.")] = None,
    tasks: Tasks = None,
    drain: Annotated[float, typer.Option("--drain", min=0, help="Seconds for a job, when told to stop.")] = 30.0,
) -> None:
    """Do a hub's work until told to stop: look at contributions, fuse, judge, publish.

    Any number of these may run, anywhere; a token of role admin is needed away from the hub.
    """
    if (hub is None) == (data is None):
        raise HubError("say whose work", expected="--hub URL or --data FOLDER")
    try:
        from ..hub.work.staff import fix_threads
    except ImportError as error:
        raise HubError("the hub is not installed", got=error, hint='pip install "cofuse[hub]"') from None
    fix_threads()
    from ..hub.logs import set_up
    from ..hub.work.worker import Worker

    set_up("text")
    if hub is not None:
        from ..hub.work.elsewhere import AwayWork, check_hub
        from ..hub.work.kinds import KINDS
        from ..store.remotes.http import Http

        wrong = next((one for one in kind or () if one not in KINDS), None)
        if wrong is not None:
            raise HubError("no such kind of work", got=wrong, expected=", ".join(KINDS))
        http = Http(hub, machine().token_for(hub), plain=machine().plain)
        check_hub(http)
        away = AwayWork(http, folder or machine().cache / "work", tasks_folder(tasks), kind)
        print(f"working for {http.url}", flush=True)
        Worker(away, drain=drain).run()
        return
    from ..hub.hub import Hub
    from ..hub.work.places import HubWork
    from .hub import opened_settings

    named = tasks_folder(tasks)
    settings = opened_settings(file, data, {} if named is None else {"tasks": str(named)})
    opened = Hub(settings)
    here = HubWork(opened)
    print(f"working in {settings.data}", flush=True)
    try:
        Worker(here, drain=drain).run()
    finally:
        here.close()
        opened.close()


GROUPS: dict[typer.Typer | None, dict[str, Callable[..., None]]] = {
    round_: {
        "start": start,
        "list": list_rounds,
        "show": show,
        "publish": publish,
        "abandon": abandon,
        "retry": retry,
    },
    policy: {"show": show_policy, "set": set_policy, "remove": remove_policy, "suite": set_suite},
    None: {"releases": releases, "revoke": revoke, "rollback": rollback, "work": work},
}


def _decide(address: str, round_id: int, decision: str, wait: bool, as_json: bool) -> None:
    with on_hub(address) as hub:
        _end(hub, hub.ask("POST", f"/rounds/{round_id}/decision", {"decision": decision}), wait, as_json)


def _end(hub: HubClient, found: dict[str, Any] | None, wait: bool, as_json: bool) -> None:
    """Tell what became of a round; exit status 1 where waiting for it did not end in a release."""
    while wait and found is not None and found["state"] not in WAITS:
        time.sleep(1)
        found = hub.ask("GET", f"/rounds/{found['id']}")
    if as_json:
        print(json.dumps(found))
    else:
        print("nothing that was released has them" if found is None else _line(found))
    if wait and found is not None and found["state"] != "published":
        raise typer.Exit(1)


def _revocation(hub: HubClient, numbers: list[int]) -> dict[str, Any] | None:
    """The round that takes contributions out of the releases that have them; None where there are none."""
    give_up = time.monotonic() + _BEGINS
    while numbers:
        for one in hub.ask("GET", "/rounds")["rounds"]:
            if one["kind"] == "revocation":
                whole = hub.ask("GET", f"/rounds/{one['id']}")
                if set(numbers) & set(whole.get("without") or ()):
                    return whole
        if time.monotonic() > give_up:
            raise HubError("no round has begun yet that takes them out", where=hub.url, hint="is a worker running?")
        time.sleep(1)
    return None


def _line(one: dict[str, Any]) -> str:
    version = f" {one['version']}" if one["version"] else ""
    reason = f": {plain(one['reason'])}" if one["reason"] else ""
    return f"{one['id']}  {one['kind']} {one['number']} of {plain(one['branch'])}  {one['state']}{version}{reason}"


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DocumentError("cannot read the file", where=file, got=error) from None
