"""Signed contributions: by which key, and whether what arrived is what was signed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cofuse.hub.sending import PATCH, Bundle, signed

from .bench import Bench, tuned

pytest.importorskip("model_signing", reason="pip install cofuse[signing]")


def key(folder: Path, name: str) -> Path:
    """A private key of its own."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    made = ec.generate_private_key(ec.SECP256R1())
    path = folder / name
    path.write_bytes(
        made.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return path


def offered(bench: Bench, seed: int, with_key: Path, data: bytes | None = None) -> int:
    """A signed contribution; with `data`, other bytes than those that were signed."""
    good = bench.patch(tuned(bench.base, seed))
    path = bench.folder / PATCH
    path.write_bytes(good)
    signature = signed(Bundle(patch=path), with_key, bench.folder)
    answer = bench.offer("ann", patch=bench.upload("ann", data or good), signature=signature)
    assert answer.status_code == 201, answer.text
    bench.work()
    return int(answer.json()["number"])


def test_a_key_is_known_from_the_second_time_and_another_is_worth_a_look(bench: Bench, tmp_path: Path) -> None:
    mine, other = key(tmp_path, "mine"), key(tmp_path, "other")
    seen = [
        bench.look(offered(bench, seed, one))["checks"]["signature"] for seed, one in ((1, mine), (2, mine), (3, other))
    ]
    assert [one["state"] for one in seen] == ["pass", "pass", "warn"]
    assert "first time" in seen[0]["figure"]
    assert seen[0]["detail"]["key"] == seen[1]["detail"]["key"] != seen[2]["detail"]["key"]


def test_what_was_changed_after_it_was_signed_is_refused(bench: Bench, tmp_path: Path) -> None:
    number = offered(bench, 1, key(tmp_path, "mine"), bench.patch(tuned(bench.base, 2)))
    seen = bench.look(number)
    assert (seen["state"], seen["commit"]) == ("refused", None)
    assert seen["checks"]["signature"]["state"] == "refuse"


@pytest.mark.parametrize(
    "said", ["", "{", "{}", '{"key": "x", "bundle": "y"}', json.dumps({"key": 1, "bundle": {"a": 1}})]
)
def test_what_is_no_signature_is_refused(bench: Bench, said: str) -> None:
    data = bench.patch(tuned(bench.base, 1))
    number = bench.offer("ann", patch=bench.upload("ann", data), signature=said).json()["number"]
    bench.work()
    assert bench.look(number)["state"] == ("open" if said == "" else "refused")
