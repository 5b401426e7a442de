"""A model's tokens and their ids, read and written as JSON: no tokenizer is run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..checkpoint import Checkpoint
from ..errors import FuseError

JSON = "tokenizer.json"
CONFIG = "tokenizer_config.json"
# Every file that belongs to a tokenizer: where one model's tokenizer takes another's place, these go together. The
# first ones decide which tokens there are.
_SENTENCEPIECE = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
VOCABULARY_FILES = (JSON, "added_tokens.json", "vocab.json", "merges.txt", "vocab.txt", *_SENTENCEPIECE)
FILES = (*VOCABULARY_FILES, CONFIG, "special_tokens_map.json", "chat_template.jinja", "chat_template.json")
# What `add_tokens` of the tokenizers library gives a plain string.
PLAIN: Mapping[str, Any] = {
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": True,
    "special": False,
}


@dataclass(frozen=True, slots=True, eq=False)
class Tokenizer:
    """The vocabulary of one model.

    Attributes:
        where: what errors call it.
        ids: every token's id, those of `added` among them.
        added: tokens matched before the vocabulary's own, as tokenizer.json lists them, by id.
        document: the parsed tokenizer.json; None where the model has only older files, which can be read but not changed.
        opaque: the bytes of a SentencePiece model that stands alone: it can only be compared. `ids` is empty then.
    """

    where: str
    ids: Mapping[str, int]
    added: tuple[Mapping[str, Any], ...] = ()
    document: Mapping[str, Any] | None = None
    opaque: bytes | None = None

    @property
    def size(self) -> int:
        """One more than the greatest id."""
        return max(self.ids.values(), default=-1) + 1

    @property
    def tokens(self) -> dict[int, str]:
        """Tokens by their ids."""
        return {number: token for token, number in self.ids.items()}

    def same_as(self, other: Tokenizer) -> bool:
        """Whether every token has the same id in both."""
        if self.opaque is not None or other.opaque is not None:
            return self.opaque == other.opaque
        return self.ids == other.ids


@dataclass(frozen=True, slots=True)
class Difference:
    """How two vocabularies differ, token by token.

    Attributes:
        first, second: tokens that only one of them has.
        moved: tokens of both that have another id.
        crossed: ids under which each has an ordinary token, and not the same one: rows that do not belong together.
    """

    first: tuple[str, ...]
    second: tuple[str, ...]
    moved: tuple[str, ...]
    crossed: tuple[int, ...]


def difference(a: Tokenizer, b: Tokenizer) -> Difference:
    """Compare two vocabularies.

    >>> a, b = Tokenizer("a", {"x": 0, "y": 1}), Tokenizer("b", {"y": 0, "z": 2})
    >>> difference(a, b)
    Difference(first=('x',), second=('z',), moved=('y',), crossed=(0,))
    """
    special = {str(t["content"]) for t in (*a.added, *b.added)}
    theirs = b.tokens
    return Difference(
        tuple(t for t in a.ids if t not in b.ids),
        tuple(t for t in b.ids if t not in a.ids),
        tuple(t for t, i in a.ids.items() if b.ids.get(t, i) != i),
        tuple(i for t, i in a.ids.items() if theirs.get(i, t) != t and not {t, theirs[i]} & special),
    )


def read_tokenizer(checkpoint: Checkpoint) -> Tokenizer | None:
    """The tokenizer of a checkpoint, None where it has none.

    Raises:
        FuseError: a file of it is malformed.
    """
    files, where = checkpoint.files, checkpoint.where
    if JSON in files:
        document = _parsed(files[JSON], where, JSON)
        tokenizer = _from_document(document, where)
    elif "vocab.json" in files:
        tokenizer = Tokenizer(where, _ids(_parsed(files["vocab.json"], where, "vocab.json"), where, "vocab.json"))
    elif "vocab.txt" in files:
        lines = files["vocab.txt"].decode(errors="replace").splitlines()
        tokenizer = Tokenizer(where, {token: i for i, token in enumerate(lines)})
    else:
        name = next((n for n in _SENTENCEPIECE if n in files), None)
        return None if name is None else Tokenizer(where, {}, opaque=files[name])
    more: dict[str, dict[str, Any]] = {}
    if "added_tokens.json" in files:
        own = _ids(_parsed(files["added_tokens.json"], where, "added_tokens.json"), where, "added_tokens.json")
        more |= {token: {"id": i, "content": token, **PLAIN} for token, i in own.items()}
    more |= listed_tokens(files, where)
    new = [t for token, t in more.items() if token not in tokenizer.ids]
    if not new:
        return tokenizer
    added = tuple(sorted((*tokenizer.added, *new), key=lambda t: int(t["id"])))
    return replace(tokenizer, ids={**tokenizer.ids, **{t["content"]: t["id"] for t in new}}, added=added)


def listed_tokens(files: Mapping[str, bytes], where: str) -> dict[str, dict[str, Any]]:
    """The added tokens that tokenizer_config.json lists, which may be more than tokenizer.json has."""
    listed = _parsed(files[CONFIG], where, CONFIG).get("added_tokens_decoder") if CONFIG in files else None
    found: dict[str, dict[str, Any]] = {}
    for number, entry in (listed if isinstance(listed, Mapping) else {}).items():
        if isinstance(entry, Mapping) and isinstance(entry.get("content"), str) and str(number).isdecimal():
            flags = {k: bool(entry.get(k, v)) for k, v in PLAIN.items()}
            found[entry["content"]] = {"id": int(number), "content": entry["content"], **flags}
    return found


def stripped(tokenizer: Tokenizer, rows: int) -> Tokenizer:
    """Without the tokens that have no row: those whose id is `rows` or more.

    >>> dict(stripped(Tokenizer("a", {"x": 0, "y": 1}), 1).ids)
    {'x': 0}
    """
    if tokenizer.size <= rows:
        return tokenizer
    ids = {token: i for token, i in tokenizer.ids.items() if i < rows}
    added = tuple(t for t in tokenizer.added if int(t["id"]) < rows)
    document = tokenizer.document
    if document is not None:
        model = dict(document["model"])
        if isinstance(model["vocab"], list):
            model["vocab"] = model["vocab"][:rows]
        else:
            model["vocab"] = {token: i for token, i in model["vocab"].items() if i < rows}
        if "merges" in model:
            # A merge needs both of its halves and what they make.
            inner = model.get("continuing_subword_prefix") or ""
            model["merges"] = [m for m in model["merges"] if all(p in ids for p in _pieces(m, inner))]
        document = {**document, "added_tokens": list(added), "model": model}
    return replace(tokenizer, ids=ids, added=added, document=document)


def extended(tokenizer: Tokenizer, tokens: Iterable[Mapping[str, Any]]) -> Tokenizer:
    """With more added tokens, which get the next free ids, as the tokenizers library counts them.

    A token that is there already keeps its id; one of the vocabulary's own becomes an added one.

    Raises:
        FuseError: the tokenizer has no tokenizer.json to write them into.

    >>> e = extended(Tokenizer("a", {"x": 0}, document={"model": {"vocab": {"x": 0}}}), [{"content": "y", **PLAIN}])
    >>> e.ids["y"], e.document["added_tokens"][0]["id"]
    (1, 1)
    """
    ids, added = dict(tokenizer.ids), {str(t["content"]): t for t in tokenizer.added}
    new = [t for t in tokens if t["content"] not in added]
    if not new:
        return tokenizer
    if tokenizer.document is None:
        raise FuseError(
            "tokens can only be added to a tokenizer.json",
            where=tokenizer.where,
            got=f"{len(new)} new tokens, such as {new[0]['content']!r}",
            hint="load the tokenizer with transformers and save it, which writes tokenizer.json",
        )
    own = len(tokenizer.document["model"]["vocab"])
    following = max([own, *(int(t["id"]) + 1 for t in added.values())])
    taken = set(ids.values())
    for token in new:
        content = str(token["content"])
        if content not in ids:
            if following in taken:
                raise FuseError(
                    "the vocabulary has holes: a new token would get an id that is taken",
                    where=tokenizer.where,
                    got=f"{content!r} as {following}",
                )
            ids[content] = following
            following += 1
        added[content] = {"id": ids[content], **{k: v for k, v in token.items() if k != "id"}}
    # The library gives ids in the order of the list, whatever the list says.
    entries = tuple(sorted(added.values(), key=lambda t: int(t["id"])))
    return replace(tokenizer, ids=ids, added=entries, document={**tokenizer.document, "added_tokens": list(entries)})


def union(first: Tokenizer, others: Sequence[tuple[Tokenizer, int]]) -> Tokenizer:
    """The first tokenizer with every token of the others that has a row: (tokenizer, rows).

    As in mergekit, what is an ordinary token elsewhere is matched as a whole word of text here: merges are not joined.
    Ordinary tokens come first, by model and id, then added ones.

    Raises:
        FuseError: see `extended`.
    """
    ordinary: dict[str, Mapping[str, Any]] = {}
    added: dict[str, Mapping[str, Any]] = {}
    for tokenizer, rows in others:
        own = {str(t["content"]) for t in tokenizer.added}
        for token, number in sorted(tokenizer.ids.items(), key=lambda pair: pair[1]):
            if number < rows and token not in own and token not in first.ids:
                ordinary.setdefault(token, {"content": token, **PLAIN})
        for entry in tokenizer.added:
            if int(entry["id"]) < rows:
                added.setdefault(str(entry["content"]), entry)
    return extended(first, [*(t for n, t in ordinary.items() if n not in added), *added.values()])


def written(tokenizer: Tokenizer, files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files with the tokenizer's tokens in them; what its owner says besides is kept.

    Args:
        tokenizer: made from the tokenizer of these files.
        files: all files of the model whose tokenizer it was.
    """
    out = dict(files)
    if tokenizer.document is None:
        return out
    out[JSON] = json_bytes(tokenizer.document)
    if CONFIG in files:
        config = _parsed(files[CONFIG], tokenizer.where, CONFIG)
        if isinstance(config.get("added_tokens_decoder"), Mapping):
            listed = {str(t["id"]): {k: v for k, v in t.items() if k != "id"} for t in tokenizer.added}
            out[CONFIG] = json_bytes({**config, "added_tokens_decoder": listed})
    if "added_tokens.json" in files:
        own = _parsed(files["added_tokens.json"], tokenizer.where, "added_tokens.json")
        vocabulary = tokenizer.document["model"]["vocab"]
        inside = set(vocabulary) if isinstance(vocabulary, Mapping) else {row[0] for row in vocabulary}
        more = {t["content"]: t["id"] for t in tokenizer.added if t["content"] in own or t["content"] not in inside}
        out["added_tokens.json"] = json_bytes(more)
    return out


def _from_document(document: dict[str, Any], where: str) -> Tokenizer:
    model = document.get("model")
    vocabulary = model.get("vocab") if isinstance(model, Mapping) else None
    if isinstance(vocabulary, Mapping):
        ids = _ids(vocabulary, where, JSON)
    elif isinstance(vocabulary, list) and all(isinstance(row, list) and row for row in vocabulary):
        ids = {str(row[0]): i for i, row in enumerate(vocabulary)}
    else:
        raise _malformed(where, JSON, "no model.vocab")
    added = []
    for token in document.get("added_tokens") or []:
        if not isinstance(token, Mapping) or not isinstance(token.get("content"), str) or not _is_id(token.get("id")):
            raise _malformed(where, JSON, f"an added token {token!r:.80}")
        added.append(token)
        ids[token["content"]] = token["id"]
    return Tokenizer(where, ids, tuple(sorted(added, key=lambda t: int(t["id"]))), document)


def _ids(vocabulary: Mapping[str, Any], where: str, file: str) -> dict[str, int]:
    for token, number in vocabulary.items():
        if not _is_id(number):
            raise _malformed(where, file, f"{token!r:.80} has the id {number!r:.20}")
    return dict(vocabulary)


def _is_id(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and 0 <= number < 1 << 31


def _pieces(merge: Any, inner: str) -> tuple[str, ...]:
    a, b = merge.split(" ", 1) if isinstance(merge, str) else merge
    return a, b, a + b.removeprefix(inner)


def _parsed(raw: bytes, where: str, file: str) -> dict[str, Any]:
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise _malformed(where, file, str(error)) from None
    if not isinstance(document, dict):
        raise _malformed(where, file, type(document).__name__)
    return document


def _malformed(where: str, file: str, got: str) -> FuseError:
    return FuseError("not a tokenizer", where=f"{where}: {file}", got=got)


def json_bytes(value: object) -> bytes:
    """A small file of JSON, as people read it."""
    return json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"


def object_in(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    """What a file of JSON says; nothing where it is not there or is no object."""
    try:
        found = json.loads(files.get(name, b"{}"))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
