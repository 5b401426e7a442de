"""A release's model card, written from its record alone, so that whoever replays the record writes the same."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

BASE_CARD = "BASE_README.md"  # what the card was before there were releases
_WORDS = {"round": "a fuse of {n}", "revocation": "fused anew without {without}"}

_TEXT = """\
---
{front}---

# {model} {version}

{how}

```python
from transformers import AutoModel

model = AutoModel.from_pretrained("{model}", revision="{version}")
```

## Credits

{credits}

## Scores

{scores}

## Lineage

{lineage}

`cofuse replay URL/{model}@{version}` makes this version again from its record and compares every tensor.

Weights can leak what they were trained on; a gate measures what its suite measures and nothing else.
"""


def card(round_: Mapping[str, Any], release: Mapping[str, Any]) -> bytes:
    """The card, in Markdown with the front matter of Hugging Face's hub.

    Args:
        round_: the commit's record of the round.
        release: its record of the release.
    """
    inputs: Sequence[Mapping[str, Any]] = round_["inputs"]
    licences = sorted({one["licence"] for one in inputs if one["licence"]} | set(release.get("licences", ())))
    front: dict[str, Any] = {"library_name": "transformers", "tags": ["cofuse", "merge"]}
    if len(licences) == 1 and re.fullmatch(r"[a-z0-9.\-]{1,40}", licences[0]):
        front = {"license": licences[0], **front}
    elif licences:
        front = {"license": "other", "license_name": ", ".join(licences)[:200], **front}
    return _TEXT.format(
        front=yaml.safe_dump(front, sort_keys=False, allow_unicode=True),
        model=round_["model"],
        version=release["version"],
        how=_how(round_, release),
        credits=_credits(inputs, round_),
        scores=_scores(release.get("verdict") or {}),
        lineage=_lineage(round_, release, licences),
    ).encode()


def _how(round_: Mapping[str, Any], release: Mapping[str, Any]) -> str:
    count = len(round_["inputs"])
    n = f"{count} contribution{'s' * (count != 1)}"
    without = ", ".join(f"#{number}" for number in round_.get("without", ()))
    said = _WORDS[round_["kind"]].format(n=n, without=without)
    text = f"Round {round_['number']} of the branch `{_plain(round_['branch'])}`: {said}, by {round_['method']}."
    if round_["approximate"]:
        text += "\n\n**Approximate:** some contributions were trained from another base; their changes were put on this one."
    if release.get("forced_by"):
        text += f"\n\nReleased by {_plain(release['forced_by'])} although the gate did not let it pass."
    return text


def _credits(inputs: Sequence[Mapping[str, Any]], round_: Mapping[str, Any]) -> str:
    if not inputs:
        return "No contribution is left in this version."
    rows = ["| contribution | by | weight | licence | data |", "|---|---|---|---|---|"]
    rows += [
        f"| #{one['contribution']} {_plain(one['title'])} | {_plain(one['account'])} | {one['weight']:g} "
        f"| {_plain(one['licence']) or 'not said'} | {_plain(one['data']) or 'not said'} |"
        for one in inputs
    ]
    out = [f"- #{one['contribution']} by {_plain(one['account'])}: {_plain(one['why'])}" for one in round_["left_out"]]
    return "\n".join(rows + (["", "Left out:", "", *out] if out else []))


def _scores(verdict: Mapping[str, Any]) -> str:
    tasks = verdict.get("tasks") or []
    reasons = "\n".join(f"- {_plain(reason)}" for reason in verdict.get("reasons", ()))
    said = f"The gate said **{_plain(verdict.get('state', 'nothing'))}**" + (f":\n\n{reasons}" if reasons else ".")
    if not tasks:
        return said
    rows = ["| task | metric | before | now | difference (95 %) |", "|---|---|---|---|---|"]
    rows += [
        f"| {_plain(one['task'])} | {_plain(one['metric'])} | {_number(one['old'])} | {_number(one['new'])} "
        f"| {_number(one['mean'], '+')} ({_number(one['low'], '+')} to {_number(one['high'], '+')}) |"
        for one in tasks
    ]
    return "\n".join([*rows, "", said])


def _lineage(round_: Mapping[str, Any], release: Mapping[str, Any], licences: Sequence[str]) -> str:
    before = release.get("previous")
    rows = [
        f"- comes after {before['version'] + ', ' if before and before.get('version') else ''}commit `{release['base']}`",
        f"- content id `{release['content']}`, fused as commit `{release['of']}`",
        f"- made by cofuse {_plain(round_['versions'].get('cofuse', '?'))}",
    ]
    rows += [f"- contribution #{one['contribution']}: commit `{one['commit']}`" for one in round_["inputs"]]
    rows += [f"- licences of what went in: {', '.join(map(_plain, licences))}"] if licences else []
    return "\n".join(rows)


def _plain(text: object) -> str:
    """What somebody wrote, as text that is nothing else in Markdown: no table, link, code or HTML."""
    words = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())[:300]
    return re.sub(
        r"([\\`*_{}\[\]()#|!~])", r"\\\1", words.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    )


def _number(value: float | None, sign: str = "") -> str:
    return "?" if value is None else f"{value:{sign}.2f}"
