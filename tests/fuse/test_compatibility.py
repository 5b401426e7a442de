"""The check says what differs, between whom, what follows and what decides it; its figures are the exact ones."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from cofuse.checkpoint import Checkpoint, Memory
from cofuse.fuse.compatibility import check
from cofuse.fuse.deltas import SAMPLE, measure_deltas
from cofuse.fuse.findings import Finding, Report

from .vocabularies import model as with_tokenizer

CONFIG = {"hidden_size": 4, "num_hidden_layers": 2, "vocab_size": 6, "rope_theta": 1e4, "num_attention_heads": 2}


def llama(
    seed: int = 0,
    *,
    near: float | None = 0.02,
    layers: int = 2,
    width: int = 4,
    tied: bool | None = None,
    dtype: torch.dtype = torch.float32,
    files: dict[str, bytes] | None = None,
    drop: str = "",
    more: dict[str, torch.Tensor] | None = None,
    **config: Any,
) -> Memory:
    """A small model near the one of seed 0, or far from it."""

    def values(seed: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        names = [
            "model.embed_tokens.weight",
            *(f"model.layers.{i}.mlp.weight" for i in range(layers)),
            "lm_head.weight",
        ]
        return {n: torch.randn(6 if "layers" not in n else width, width, generator=generator) for n in names}

    held = values(seed)
    if seed and near is not None:
        held = {n: v + near * held[n] for n, v in values(0).items()}
    if tied is not None:
        head = held.pop("lm_head.weight")
        held["lm_head.weight"] = held["model.embed_tokens.weight"] if tied else head
    held = {n: t.to(dtype) for n, t in held.items() if n != drop}
    if tied:
        held["lm_head.weight"] = held["model.embed_tokens.weight"]
    files = {"config.json": json.dumps({**CONFIG, **config}).encode(), **(files or {})}
    return Memory({**held, **(more or {})}, files=files)


def found(report: Report, topic: str) -> Finding:
    (only,) = [f for f in report.findings if f.topic == topic]
    return only


def two(other: Checkpoint, base: Checkpoint | None = None) -> Report:
    return check({"base": base or llama(), "tuned": other}, "base")


def test_good_finetunes_have_nothing_against_them() -> None:
    report = check({"base": llama(), "a": llama(1), "b": llama(4)}, "base")
    assert report.findings == ()
    assert report.worst is None
    assert report.deltas is not None
    assert report.deltas.models == ("a", "b")
    assert "nothing differs" in report.text()


@pytest.mark.parametrize(
    ("other", "topic", "severity", "setting"),
    [
        (llama(1, layers=3), "layers", "stop", "slices"),
        (llama(1, drop="model.layers.1.mlp.weight"), "layers", "stop", "slices"),
        (llama(1, more={"score.weight": torch.ones(2)}), "other tensors", "stop", "partial"),
        (llama(1, drop="model.layers.0.mlp.weight"), "missing tensors", "stop", "partial"),
        (llama(1, near=None, width=5, hidden_size=5), "shapes", "stop", ""),
        (llama(1, rope_theta=1e6), "positions", "warn", "base_model"),
        (llama(1, rope_scaling={"factor": 2}), "positions", "warn", "base_model"),
        (llama(1, max_position_embeddings=9), "positions", "note", "base_model"),
        (llama(1, num_attention_heads=4), "config", "warn", "base_model"),
        (llama(1, model_type="other"), "config", None, ""),
        (llama(1, tied=True), "tied head", "warn", ""),
        (llama(1, dtype=torch.bfloat16), "dtypes", "note", "out_dtype"),
        (llama(1, files={"chat_template.jinja": b"{{ x }}"}), "chat template", "warn", "chat_template"),
        (llama(1, near=None), "distance", "warn", "base_model"),
        (llama(0), "distance", "warn", "leave it out"),
        (llama(1, _name_or_path="org/unrelated"), "parent", "note", "base_model"),
        (llama(1, _name_or_path="org/Base"), "parent", None, ""),
        (llama(1, files={"README.md": b"---\nbase_model:\n  - org/other\n---\n"}), "parent", "note", "base_model"),
        (llama(1, files={"README.md": b"---\nbase_model: org/base\n---\n"}), "parent", None, ""),
        (llama(1, more={"x.qweight": torch.zeros(1, dtype=torch.int32)}), "quantisation", "stop", "quantised from"),
    ],
)
def test_each_difference_is_found(other: Checkpoint, topic: str, severity: str | None, setting: str) -> None:
    report = two(other)
    if severity is None:
        assert topic not in {f.topic for f in report.findings}
        return
    finding = found(report, topic)
    assert finding.severity == severity
    assert "tuned" in finding.between
    assert setting in finding.setting
    assert finding.consequence in report.text()


def test_vocabularies_are_compared_token_by_token() -> None:
    report = check({"a": with_tokenizer("a"), "b": with_tokenizer("b")}, "a")
    assert "tokenizer_source" in found(report, "vocabulary size").setting
    tokens = found(report, "tokens")
    assert tokens.severity == "stop"
    assert "of its own" in tokens.got
    # What the recipe settles is no reason to stop.
    settled = check({"a": with_tokenizer("a"), "b": with_tokenizer("b")}, "a", settled=["tokenizer_source"])
    assert found(settled, "tokens").severity == "note"
    special = with_tokenizer("a", files={"tokenizer_config.json": b'{"eos_token": {"content": "<|im_end|>"}}'})
    assert "<|im_end|>" in found(check({"a": with_tokenizer("a"), "b": special}, "a"), "special tokens").got


def test_fp8_is_noted() -> None:
    weight = torch.ones(4, 4).to(torch.float8_e4m3fn)
    scale = {"model.layers.0.mlp.weight": weight, "model.layers.0.mlp.weight_scale": torch.ones(())}
    assert found(two(llama(1, more=scale)), "quantisation").severity == "note"


def test_the_gravest_come_first_and_machines_can_read_it() -> None:
    report = two(llama(1, layers=3, rope_theta=1e6, dtype=torch.bfloat16))
    order = [f.severity for f in report.findings]
    assert order == sorted(order, key=["stop", "warn", "note"].index)
    assert report.worst == "stop"
    again = json.loads(json.dumps(report.as_json()))
    assert [f["topic"] for f in again["findings"]] == [f.topic for f in report.findings]
    assert again["base"] == "base"


def test_deltas_are_the_gram_matrix_of_whole_tensors() -> None:
    base, a, b = llama(), llama(1), llama(2)
    report = measure_deltas({"base": base, "a": a, "b": b}, "base", blocks=None)
    flat = {
        k: torch.cat([m.read(n).double().flatten() for n in base.names()]) for k, m in (("0", base), ("a", a), ("b", b))
    }
    da, db = flat["a"] - flat["0"], flat["b"] - flat["0"]
    assert report.relative == pytest.approx(
        [(da.norm() / flat["0"].norm()).item(), (db.norm() / flat["0"].norm()).item()]
    )
    assert report.cosine[0][1] == pytest.approx((da @ db / da.norm() / db.norm()).item())
    assert report.distance(0, 1) == pytest.approx(((da - db).norm() / flat["0"].norm()).item())
    assert report.looked == report.elements == len(da)


def test_a_sample_comes_close_and_threads_do_not_matter() -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(10 * SAMPLE + 7, generator=generator)
    cps = {"base": Memory({"x": base, "n": torch.ones(3, dtype=torch.int64)})}
    cps |= {k: Memory({"x": base + 0.1 * torch.randn(len(base), generator=generator)}) for k in "ab"}
    whole = measure_deltas(cps, "base", blocks=None)
    some = measure_deltas(cps, "base", blocks=3, threads=1)
    assert some == measure_deltas(cps, "base", blocks=3, threads=4)
    assert some.looked < whole.looked == len(base)
    assert some.relative == pytest.approx(whole.relative, rel=0.02)
    assert some.cosine[0][1] == pytest.approx(whole.cosine[0][1], abs=0.02)


def test_without_a_base_the_first_model_takes_its_place() -> None:
    report = check({"a": llama(1), "b": llama(1), "c": llama(3, near=None)})
    assert {f.topic for f in report.findings} == {"direction", "distance"}
    assert found(report, "direction").between == ("a", "b")
    assert found(report, "distance").between[0] == "c"


def test_directions_are_judged() -> None:
    base, a = llama(), llama(1)
    against = Memory({n: 2 * base.read(n) - a.read(n) for n in base.names()}, files=base.files)
    assert "undo" in found(check({"base": base, "a": a, "b": against}, "base"), "direction").consequence
    assert "twice" in found(check({"base": base, "a": a, "b": llama(1)}, "base"), "direction").consequence


def test_a_value_that_is_not_finite_is_named() -> None:
    broken = llama(1)
    name = "model.layers.0.mlp.weight"
    held = {n: broken.read(n) for n in broken.names()}
    held[name][0, 0] = float("nan")
    finding = found(two(Memory(held, files=broken.files)), "values")
    assert finding.severity == "stop"
    assert finding.between == ("tuned",)
    assert name in finding.got
