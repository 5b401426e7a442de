"""What cards begin with: values as they were written, whatever is written, and never at the price of the hub."""

from __future__ import annotations

import contextlib
import json
import time
from typing import Any

import httpx
import pytest
import yaml
from huggingface_hub import HfApi
from hypothesis import given
from hypothesis import strategies as st

from cofuse.hub.faults import Invalid
from cofuse.hub.frontmatter import MOST, front_matter, without_front

from ..serving import HubServer
from .conftest import OWNER

# What the client itself is warned of by its own dependency.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")

TAGS = ("bool", "int", "float", "timestamp", "null", "set", "map", "omap", "pairs", "binary", "merge", "python/name:os")
NOT_YAML = [
    *(f"license: !!{tag} {value}" for tag in TAGS[:4] for value in ("x", '""')),
    "license: 0x" + "f" * 5000,
    "a: &a [x]\nb: [*a, *a]",
    "[" * 3000,
    "- a",
    "a: 2001-13-01",
]
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("C",)), max_size=20)
VALUES = st.recursive(st.none() | st.booleans() | st.integers() | TEXT, lambda inner: st.lists(inner, max_size=3))


@given(st.dictionaries(TEXT, VALUES, min_size=1, max_size=4), TEXT)
def test_values_are_as_they_were_written(said: dict[str, Any], rest: str) -> None:
    written = yaml.dump(said, Dumper=Plain, allow_unicode=True)
    for ends in ("\n", "\r\n"):
        text = f"---\n{written}---\n# Card {rest}\n".replace("\n", ends)
        assert front_matter(text) == json.loads(json.dumps(said))
        assert without_front(text) == f"# Card {rest}{ends}"


class Plain(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


@given(st.sampled_from(TAGS), TEXT)
def test_whatever_is_written_is_read_or_refused(tag: str, value: str) -> None:
    with contextlib.suppress(Invalid):
        json.dumps(front_matter(f"---\nlicense: !!{tag} {value}\n---\n"))


def test_no_card_takes_more_than_a_moment() -> None:
    began = time.perf_counter()
    assert front_matter("---\nx: [" + "a, " * MOST + "]\n---\n") == {}
    assert time.perf_counter() - began < 1


@pytest.mark.parametrize("front", NOT_YAML, ids=range(len(NOT_YAML)))
def test_a_card_that_cannot_be_read_takes_nothing_else_away(hub_server: HubServer, secret: str, front: str) -> None:
    name, card = f"{OWNER}/carded", f"---\n{front}\n---\n# Shown\n"
    api = HfApi(endpoint=hub_server.url, token=secret)
    api.create_repo(name, exist_ok=True)
    lines = [
        {"key": "header", "value": {"summary": "x"}},
        {"key": "file", "value": {"path": "README.md", "content": card}},
    ]
    with hub_server.client(secret) as client:
        body = "\n".join(json.dumps(line) for line in lines)
        assert client.post(f"/api/models/{name}/commit/main", content=body).status_code == 200
        assert client.post("/api/validate-yaml", json={"content": card}).status_code == 400
        page = client.get(f"/{name}", headers={"Accept": "text/html"})
    assert page.status_code == 200, page.text
    assert "<h3>Shown</h3>" in page.text
    assert api.model_info(name).card_data is None or not api.model_info(name).card_data.to_dict()


def test_a_list_of_all_that_is_known_goes_on_by_link(hub_server: HubServer, secret: str) -> None:
    """Each row of it opens a store: nobody gets a thousand at once."""
    with hub_server.client(secret) as client:
        there = {f"{OWNER}/many-{n}" for n in range(51)}
        for name in sorted(there):
            client.post("/api/repos/create", json={"name": name.partition("/")[2]}).raise_for_status()
        path, found, most = f"/api/models?author={OWNER}&search=many-&full=true&limit=1000", set(), 0
        while path:
            answer: httpx.Response = client.get(path)
            found |= {row["id"] for row in answer.json()}
            most, path = max(most, len(answer.json())), answer.links.get("next", {}).get("url", "")
    assert found == there
    assert most < 51
