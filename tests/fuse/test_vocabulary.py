"""Vocabularies are joined token by token, padded, or refused; what is written is what the tokenizers library reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tokenizers import Tokenizer

from cofuse.checkpoint import Checkpoint, Memory
from cofuse.checkpoint.views import with_files
from cofuse.errors import FuseError
from cofuse.fuse import fuse
from cofuse.fuse.tokenizer import PLAIN, extended, read_tokenizer, stripped
from cofuse.fuse.vocabulary import TokenizerSettings, with_vocabulary

from .vocabularies import joined_rows, model, rows_by_token, token_ids, trained

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
KINDS = ["bpe", "wordpiece", "unigram"]


def three(**options: Any) -> dict[str, Checkpoint]:
    return {which: model(which, **options) for which in "abc"}


def join(
    models: dict[str, Checkpoint], base: str | None = None, others: dict[str, Checkpoint] | None = None, **said: Any
) -> dict[str, Checkpoint]:
    leader = base or next(iter(models))
    return with_vocabulary(TokenizerSettings(**said), models, leader=leader, base=base, others=others)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("base", [None, "a", "b"])
@pytest.mark.parametrize("source", ["union", "base", "c"])
def test_rows_go_with_their_tokens(kind: str, base: str | None, source: str) -> None:
    models = three(kind=kind)
    leader = base or "a"
    views = join(models, base, source=source)
    ids = token_ids(views[leader])
    own = {which: token_ids(m) for which, m in models.items()}
    union = {t for tokens in own.values() for t in tokens}
    assert set(ids) == {"union": union, "base": set(own[leader]), "c": set(own["c"])}[source]
    if source == "union":
        assert {t: ids[t] for t in own[leader]} == own[leader]
    for name in (EMBEDDING, HEAD):
        expected = joined_rows(models, list(ids), base, name)
        for which, view in views.items():
            got = view.read(name)
            assert got.shape == (len(ids), 4)
            for token, i in ids.items():
                torch.testing.assert_close(got[i], expected[which][token], msg=f"{which} {token}")
    assert views[leader].config["vocab_size"] == len(ids)
    fused = fuse("linear", list(views.values()))
    assert fused.config["vocab_size"] == len(ids) == fused.spec(HEAD).shape[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_joined_tokenizer_reads_text_as_its_owner_does(kind: str) -> None:
    models = three(kind=kind)
    views = join(models, "a", source="union")
    joined = Tokenizer.from_str(views["a"].files["tokenizer.json"].decode())
    # The special tokens of the others are whole now; text without their words is cut as before.
    assert joined.encode("<|im_end|>").tokens == ["<|im_end|>"]
    assert joined.token_to_id("<|im_end|>") == token_ids(views["a"])["<|im_end|>"]
    plain = Tokenizer.from_str(join(models, "a", source="base")["a"].files["tokenizer.json"].decode())
    assert plain.encode("the cat").ids == trained("a", kind).encode("the cat").ids


def test_transformers_loads_it(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    views = join(three(), "a", source="union")
    for name, data in views["a"].files.items():
        (tmp_path / name).write_bytes(data)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").unlink()
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == token_ids(views["a"])
    assert loaded.eos_token_id == token_ids(model("a"))["</s>"]


def test_rows_that_pad_are_kept() -> None:
    a, b = model("a", spare=50), model("b", spare=3)
    views = join({"a": a, "b": b}, "a", source="base")
    assert views["a"] is a
    got, tokens = views["b"].read(EMBEDDING), len(token_ids(a))
    assert len(got) == len(a.read(EMBEDDING))
    longer = len(b.read(EMBEDDING))
    assert tokens < longer < len(got)
    assert torch.equal(got[longer:], a.read(EMBEDDING)[longer:])
    union = join({"a": a, "b": b}, "a", source="union")
    new = len(token_ids(union["a"])) - tokens
    assert 0 < new <= 50
    assert union["a"].config["vocab_size"] == tokens + 50  # the new tokens took rows that were spare
    assert torch.equal(union["a"].read(EMBEDDING)[tokens + new :], a.read(EMBEDDING)[tokens + new :])


@pytest.mark.parametrize(("multiple", "spare"), [(64, 0), (64, 50), (1, 50)])
def test_padding_that_is_asked_for_is_the_mean_row(multiple: int, spare: int) -> None:
    models: dict[str, Checkpoint] = {"a": model("a", spare=spare), "b": model("b")}
    views = join(models, "a", source="union", pad_to_multiple_of=multiple)
    count = len(token_ids(views["a"]))
    for view in views.values():
        got = view.read(EMBEDDING)
        assert len(got) == -(-count // multiple) * multiple == view.config["vocab_size"]
        mean = got[:count].double().mean(0).float()
        torch.testing.assert_close(got[count:], mean.expand(len(got) - count, -1))


def test_single_tokens_go_by_their_rules() -> None:
    models = three()
    views = join(
        models,
        "a",
        tokens={
            "<|im_end|>": {"source": "c"},
            "<|im_start|>": {"source": {"kind": "model_token", "model": "a", "token": "</s>"}, "force": True},
            "<pad>": {"source": {"kind": "zero"}, "force": True},
            "<new>": {"source": {"kind": "model_token", "model": "b", "token_id": 5}},
        },
    )
    ids = token_ids(views["a"])
    own = {which: rows_by_token(m, EMBEDDING) for which, m in models.items()}
    rows = {which: v.read(EMBEDDING) for which, v in views.items()}
    assert torch.equal(rows["a"][ids["<|im_end|>"]], own["c"]["<|im_end|>"])
    assert torch.equal(rows["b"][ids["<|im_end|>"]], own["b"]["<|im_end|>"])
    for which in "abc":
        assert torch.equal(rows[which][ids["<|im_start|>"]], own["a"]["</s>"])
        assert not rows[which][ids["<pad>"]].any()
        assert torch.equal(rows[which][ids["<new>"]], models["b"].read(EMBEDDING)[5])


def test_a_row_may_come_from_a_model_that_is_not_fused() -> None:
    models = {which: model(which) for which in "ab"}
    views = join(dict(models), "a", {"c": model("c")}, source="base", tokens={"<pad>": {"source": "c"}})
    row = views["b"].read(EMBEDDING)[token_ids(views["a"])["<pad>"]]
    assert torch.equal(row, rows_by_token(model("c"), EMBEDDING)["<pad>"])
    assert TokenizerSettings(
        source="x", tokens={"t": {"source": "y"}, "u": {"source": {"kind": "zero"}}}
    ).addresses == (
        "x",
        "y",
    )


def test_the_tokenizer_of_another_model_brings_its_files_and_special_ids() -> None:
    shifted = trained("b")
    shifted.add_special_tokens(["<eot>"])
    other = model("b", files={"tokenizer.json": shifted.to_str().encode(), "vocab.json": b"{}"})
    a = model("a", files={"generation_config.json": b'{"eos_token_id": [1], "pad_token_id": null}', "merges.txt": b""})
    config = {**a.config, "bos_token_id": token_ids(a)["the"]}
    a = with_files(a, {**a.files, "config.json": json.dumps(config).encode()})  # type: ignore[assignment]
    views = join({"a": a, "b": other}, "a", source="b")
    assert views["a"].files["tokenizer.json"] == other.files["tokenizer.json"]
    assert "vocab.json" in views["a"].files
    assert "merges.txt" not in views["a"].files
    assert json.loads(views["a"].files["generation_config.json"])["eos_token_id"] == [shifted.token_to_id("</s>")]
    assert views["a"].config["eos_token_id"] == shifted.token_to_id("</s>")


def test_equal_vocabularies_cost_nothing() -> None:
    a, b = model("a"), model("a")
    for said in (None, TokenizerSettings(), TokenizerSettings(source="base"), TokenizerSettings(source="pad")):
        views = with_vocabulary(said, {"a": a, "b": b}, leader="a")
        assert views["a"] is a
        assert views["b"] is b


def test_other_sizes_are_refused_unless_something_is_said() -> None:
    with pytest.raises(FuseError, match=r"different sizes[\s\S]*got: [\s\S]*rows[\s\S]*tokenizer_source: union"):
        with_vocabulary(None, {"a": model("a"), "b": model("a", spare=1)}, leader="a")


def test_rows_that_stand_for_other_tokens_are_refused() -> None:
    a, b = model("a"), model("c")
    rows = max(len(token_ids(a)), len(token_ids(b)))
    models = {w: model(w, spare=rows - len(token_ids(model(w)))) for w in "ac"}
    with pytest.raises(FuseError, match="the same row stands for different tokens"):
        with_vocabulary(None, models, leader="a")


def test_a_special_token_in_a_spare_row_is_not_refused() -> None:
    tokenizer = trained("a")
    tokenizer.add_special_tokens(["<|im_end|>"])
    a, b = model("a", spare=1), model("a", spare=1, files={"tokenizer.json": tokenizer.to_str().encode()})
    assert with_vocabulary(None, {"a": a, "b": b}, leader="a")["b"] is b


def test_padding_goes_by_rows() -> None:
    a, b = model("a"), model("a", spare=5)
    views = join({"a": a, "b": b}, "a", source="pad")
    assert views["b"] is b
    rows = len(a.read(EMBEDDING))
    assert torch.equal(views["a"].read(EMBEDDING)[:rows], a.read(EMBEDDING))
    assert torch.equal(views["a"].read(EMBEDDING)[rows:], b.read(EMBEDDING)[rows:])
    assert views["a"].config["vocab_size"] == rows + 5
    views = join({"a": b, "b": a}, "a", source="pad", pad_to_multiple_of=64)
    assert views["a"].spec(HEAD).shape == views["b"].spec(HEAD).shape == (128, 4)


def test_tied_names_stay_tied() -> None:
    models: dict[str, Checkpoint] = {"a": model("a", tied=True), "b": model("b", tied=True)}
    fused = fuse("linear", list(join(models, source="union").values()))
    assert dict(fused.aliases) == {HEAD: EMBEDDING}
    apart: dict[str, Checkpoint] = {"a": model("a", tied=True), "b": model("b")}
    views = join(apart, source="union")
    ids = token_ids(views["a"])
    expected = joined_rows(apart, list(ids), None, HEAD)
    for token, i in ids.items():
        assert torch.equal(views["b"].read(HEAD)[i], expected["b"][token])


def test_a_model_keeps_its_dtype() -> None:
    views = join({"a": model("a", dtype=torch.bfloat16), "b": model("b")}, "a", source="union")
    assert views["a"].spec(EMBEDDING).dtype == "BF16"
    token = token_ids(views["a"])["<|im_end|>"]
    expected = rows_by_token(model("b"), EMBEDDING)["<|im_end|>"].to(torch.bfloat16)
    assert torch.equal(views["a"].read(EMBEDDING)[token], expected)


def test_a_model_without_a_tokenizer_has_the_leaders() -> None:
    bare = Memory({EMBEDDING: torch.zeros(len(token_ids(model("a"))), 4)}, where="bare")
    views = join({"a": model("a"), "bare": bare}, "a", source="union")
    assert views["bare"] is bare
    with pytest.raises(FuseError, match="the model has no tokenizer"):
        join({"bare": bare, "a": model("a")}, "bare", source="union")


def test_sentencepiece_alone_is_compared_and_not_joined() -> None:
    def alone(which: str, data: bytes) -> Checkpoint:
        held = model(which)
        return with_files(held, {"config.json": held.files["config.json"], "tokenizer.model": data})

    same = {"a": alone("a", b"x"), "b": alone("a", b"x")}
    assert join(same, "a", source="union")["b"] is same["b"]
    for models in ({"a": alone("a", b"x"), "b": alone("a", b"y")}, {"a": model("a"), "b": alone("a", b"x")}):
        with pytest.raises(FuseError, match=r"SentencePiece[\s\S]*save it, which writes tokenizer\.json"):
            join(models, "a", source="union")


def test_older_files_can_be_read_but_not_written() -> None:
    ids = token_ids(model("a"))
    config = model("a").files["config.json"]
    old = with_files(model("a"), {"config.json": config, "vocab.json": json.dumps(ids).encode()})
    views = join({"b": model("b"), "a": old}, "b", source="base")
    expected = joined_rows({"b": model("b"), "a": model("a")}, list(token_ids(model("b"))), "b", EMBEDDING)
    for token, i in token_ids(model("b")).items():
        assert torch.equal(views["a"].read(EMBEDDING)[i], expected["a"][token])
    with pytest.raises(FuseError, match="tokens can only be added"):
        join({"a": old, "b": model("b")}, "a", source="union")


@pytest.mark.parametrize("kind", KINDS)
def test_stripping_leaves_a_tokenizer_that_loads(kind: str) -> None:
    found = read_tokenizer(model("b", kind=kind))
    assert found is not None
    for rows in (found.size - 1, found.size - 12):
        kept = stripped(found, rows)
        loaded = Tokenizer.from_str(json.dumps(kept.document))
        assert loaded.get_vocab() == dict(kept.ids)
        assert max(kept.ids.values()) == rows - 1


def test_tokens_without_rows_are_stripped_from_the_base() -> None:
    tokenizer = trained("a")
    rows = tokenizer.get_vocab_size()
    tokenizer.add_tokens(["<no row>"])
    a = model("a", files={"tokenizer.json": tokenizer.to_str().encode()})
    views = join({"a": a, "b": model("b")}, "a", source="base")
    assert len(token_ids(views["a"])) == rows


@pytest.mark.parametrize("kind", KINDS)
def test_new_tokens_get_the_ids_that_the_library_gives(kind: str) -> None:
    found = read_tokenizer(model("b", kind=kind))
    assert found is not None
    new = ["<x>", "le", "<|im_end|>", "<y>"]
    more = extended(found, [{"content": t, **PLAIN} for t in new])
    library = trained("b", kind)
    library.add_tokens(new)
    assert dict(more.ids) == library.get_vocab()
    assert Tokenizer.from_str(json.dumps(more.document)).get_vocab() == library.get_vocab()


def test_files_that_list_tokens_again_are_kept_in_step() -> None:
    decoder = {"0": {"content": "<s>", "special": True}}
    a = model("a", files={
        "tokenizer_config.json": json.dumps({"added_tokens_decoder": decoder, "x": 1}).encode(),
        "added_tokens.json": b"{}",
    })  # fmt: skip
    files = join({"a": a, "b": model("b")}, "a", source="union")["a"].files
    ids = token_ids(a) | json.loads(files["added_tokens.json"])
    listed = json.loads(files["tokenizer_config.json"])
    assert listed["x"] == 1
    assert {t["content"]: int(i) for i, t in listed["added_tokens_decoder"].items()}["<|im_end|>"] == ids["<|im_end|>"]


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"tokens": {"<|im_end|>": {"source": "nobody"}}}, "lacks the tensor"),
        ({"tokens": {"<new>": {"source": "b"}}}, "the model lacks the token"),
        ({"tokens": {"<new>": {"source": {"kind": "model_token", "model": "b", "token": "<none>"}}}}, "no such row"),
        ({"tokens": {"<new>": {"source": {"kind": "model_token", "model": "b", "token_id": 9999}}}}, "no such row"),
        ({"source": "nobody"}, "not opened"),
        ({"source": "pad", "tokens": {"<new>": {}}}, "need a tokenizer"),
    ],
)
def test_what_cannot_be_done_is_said(said: dict[str, Any], message: str) -> None:
    with pytest.raises(FuseError, match=message):
        join({"a": model("a"), "b": model("b")}, "a", **said)


def test_settings_that_make_no_sense_are_refused() -> None:
    for said in (
        {"tokens": {"t": {"source": {"kind": "model_token", "model": "a"}}}},
        {"tokens": {"t": {"source": {"kind": "model_token", "model": "a", "token": "x", "token_id": 1}}}},
        {"tokens": {"t": {"force": True}}},
        {"pad_to_multiple_of": 0},
    ):
        with pytest.raises(ValidationError):
            TokenizerSettings(**said)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "broken",
    [b"{", b"[]", b"{}", b'{"model": {"vocab": {"a": -1}}}', b'{"model": {"vocab": {"a": 0}}, "added_tokens": [1]}'],
)
def test_a_broken_tokenizer_is_an_error(broken: bytes) -> None:
    with pytest.raises(FuseError, match="not a tokenizer"):
        join({"a": model("a", files={"tokenizer.json": broken}), "b": model("b")}, "a")
