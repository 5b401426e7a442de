"""One vocabulary out of several, and every model's rows in its order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..checkpoint import Checkpoint, Source
from ..checkpoint.architecture import at, changed, vocabulary_axis, vocabulary_size, vocabulary_sizes
from ..checkpoint.rows import FILL, MEAN, ZERO, Gathered, Rows
from ..errors import FuseError
from .tokenizer import (
    CONFIG,
    FILES,
    PLAIN,
    VOCABULARY_FILES,
    Tokenizer,
    extended,
    json_bytes,
    listed_tokens,
    object_in,
    read_tokenizer,
    stripped,
    union,
    written,
)
from .tokens import WORDS, ModelRow, TokenizerSettings, TokenRow, ZeroRow


@dataclass(frozen=True, slots=True, eq=False)
class _Default:
    """The row that a token has in a model which lacks it, for every token: indices into the participants."""

    which: npt.NDArray[np.int32]
    row: npt.NDArray[np.int64]
    means: tuple[tuple[tuple[int, int], ...], ...]
    forced: npt.NDArray[np.bool_]


class Joining:
    """One vocabulary out of several, and the models' rows in its order."""

    def __init__(
        self,
        settings: TokenizerSettings,
        models: Mapping[str, Checkpoint],
        leader: str,
        base: str | None,
        others: Mapping[str, Checkpoint],
    ) -> None:
        self.settings = settings
        self.models = models
        self.leader = leader
        self.base = base
        self.everyone = {**models, **{a: c for a, c in others.items() if a not in models}}
        self.owner = leader if settings.source in WORDS else self._known(settings.source)
        self.places = {address: vocabulary_rows(cp) for address, cp in self.everyone.items()}
        self.tokenizers = self._read()
        self.result = self._join()
        self._positions: dict[tuple[str, int], npt.NDArray[np.int64]] = {}
        self._defaults: dict[tuple[tuple[str, int], ...], _Default] = {}
        rows = self._rows(self.owner)
        kept = rows if settings.pad_to_multiple_of is None else 0
        self.size = max(rounded(self.result.size, settings.pad_to_multiple_of), kept)

    def views(self) -> dict[str, Checkpoint]:
        return {address: self._view(address) for address in self.models}

    def _known(self, address: str) -> str:
        if address not in self.everyone:
            raise FuseError("the tokenizer's settings name a model that is not opened", got=address)
        return address

    def _rows(self, address: str) -> int:
        """Rows of a model's vocabulary; as many as tokens where nothing says."""
        here = [count for _, count in self.places[address].values()]
        said = vocabulary_size(self.everyone[address].config)
        return max(here) if here else said if said is not None else self.tokenizers[address].size

    def _read(self) -> dict[str, Tokenizer]:
        first = read_tokenizer(self.models[self.leader])
        if first is None:
            raise FuseError(
                "the model has no tokenizer", where=self.models[self.leader].where, expected="tokenizer.json"
            )
        found: dict[str, Tokenizer] = {}
        for address, model in self.everyone.items():
            # A model without a tokenizer is taken to have the leader's, as in mergekit.
            same = model is self.models[self.leader] or same_files(model, self.models[self.leader])
            found[address] = first if same else read_tokenizer(model) or first
        opaque = [t for t in found.values() if t.opaque is not None]
        if opaque and not (all(t.same_as(first) for t in found.values()) and not self.settings.tokens):
            raise FuseError(
                "a SentencePiece model cannot be read token by token",
                where=opaque[0].where,
                expected="tokenizer.json",
                hint="load the tokenizer with transformers and save it, which writes tokenizer.json; "
                "or tokenizer_source: pad, which goes by rows",
            )
        return found

    def _join(self) -> Tokenizer:
        own = self.tokenizers[self.owner]
        if self.owner == self.leader and own.opaque is None:
            own = stripped(own, self._rows(self.leader))
        if self.settings.source in ("union", "join"):
            own = union(
                own, [(self.tokenizers[a], self._rows(a)) for a in self.models if self.tokenizers[a] is not own]
            )
        return extended(own, [{"content": t, **PLAIN} for t in self.settings.tokens if t not in own.ids])

    def _view(self, address: str) -> Checkpoint:
        model = self.models[address]
        rows = {
            name: found
            for name, (axis, count) in self.places[address].items()
            if name not in model.aliases and (found := self._gather(address, name, axis, count)) is not None
        }
        files = self._files() if address == self.leader else resized(model, dict(model.files), self.size)
        if not rows and files == dict(model.files):
            return model
        return Gathered(model, rows, files=files)

    def _gather(self, address: str, name: str, axis: int, count: int) -> Rows | None:
        """A tensor's rows in the joined order; None when they are so already."""
        there = [a for a in self.everyone if name in self.places[a]]
        default = self._default(tuple((a, self.places[a][name][1]) for a in there))
        me = there.index(address)
        # Own rows come first among the sources.
        order = [me, *(i for i in range(len(there)) if i != me)]
        seat = np.empty(len(there), np.int32)
        seat[order] = np.arange(len(there))
        own = self._position(address, count)
        keeps = (own >= 0) & ~default.forced
        moved = np.where(default.which >= 0, seat[default.which.clip(0)], default.which)
        which = np.where(keeps, np.int32(0), moved).astype(np.int32)
        row = np.where(keeps, own, default.row)
        if count == self.size and not which.any() and (row == np.arange(count)).all():
            return None
        means = tuple(tuple((int(seat[s]), r) for s, r in pairs) for pairs in default.means)
        sources = tuple(Source(self.everyone[there[i]], name) for i in order)
        return Rows(sources, which, row, means, self.result.size, axis)

    def _position(self, address: str, count: int) -> npt.NDArray[np.int64]:
        """For each joined row, which of a model's rows it is; -1 where the model has none."""
        if (address, count) not in self._positions:
            ids, out = self.tokenizers[address].ids, np.full(self.size, -1, np.int64)
            if self.tokenizers[address].opaque is not None:
                both = min(count, self.size)
                out[:both] = np.arange(both)
            else:
                # Rows that stand for no token in either vocabulary pad it, and stay where they are.
                limit = self.size if self.settings.pad_to_multiple_of is None else self.result.size
                unnamed = np.ones(max(count, limit), np.bool_)
                unnamed[[i for i in ids.values() if i < len(unnamed)]] = False
                unnamed[list(self.result.ids.values())] = False
                both = min(count, limit)
                out[:both] = np.where(unnamed[:both], np.arange(both), -1)
                spots = np.fromiter(self.result.ids.values(), np.int64, len(self.result.ids))
                theirs = np.fromiter((ids.get(t, -1) for t in self.result.ids), np.int64, len(spots))
                out[spots] = np.where(theirs < count, theirs, -1)
            self._positions[address, count] = out
        return self._positions[address, count]

    def _default(self, there: tuple[tuple[str, int], ...]) -> _Default:
        if there not in self._defaults:
            self._defaults[there] = self._decide(there)
        return self._defaults[there]

    def _decide(self, there: tuple[tuple[str, int], ...]) -> _Default:
        names = [address for address, _ in there]
        positions = np.stack([self._position(a, count) for a, count in there])  # [participants, rows]
        fused = np.array([a in self.models for a in names])
        has = (positions >= 0) & fused[:, None]
        present = has.sum(0)
        which = np.where(present == 1, has.argmax(0), ZERO).astype(np.int32)
        several = present > 1
        for address in (self.owner, self.base):
            if address in names:
                k = names.index(address)
                # What the tokenizer's owner alone has is taken from there though it is not fused.
                chosen = (several if address == self.base else present == 0) & (positions[k] >= 0)
                which[chosen] = k
                several = several & ~chosen
        row = np.where(which >= 0, np.take_along_axis(positions, which.clip(0)[None].astype(np.int64), 0)[0], 0)
        means: list[tuple[tuple[int, int], ...]] = []
        for token in np.flatnonzero(several & (present < fused.sum())).tolist():
            which[token], row[token] = MEAN, len(means)
            means.append(tuple((k, int(positions[k, token])) for k in np.flatnonzero(has[:, token]).tolist()))
        if self.settings.pad_to_multiple_of is not None:
            which[self.result.size :] = FILL
        forced = np.zeros(self.size, np.bool_)
        for content, setting in self.settings.tokens.items():
            number = self.result.ids[content]
            if setting.source is None or (present[number] == fused.sum() and not setting.force):
                continue
            which[number], row[number] = self._named(content, setting, there, positions[:, number])
            forced[number] = setting.force
        return _Default(which, row, tuple(means), forced)

    def _named(
        self, token: str, setting: TokenRow, there: Sequence[tuple[str, int]], positions: npt.NDArray[np.int64]
    ) -> tuple[int, int]:
        """The row that the settings give a token."""
        source = setting.source
        if isinstance(source, ZeroRow):
            return ZERO, 0
        address = source.model if isinstance(source, ModelRow) else str(source)
        place = next((i for i, (a, _) in enumerate(there) if a == address), None)
        where = f"tokenizer.tokens.{token}"
        if place is None:
            raise FuseError("the model that a token's row comes from lacks the tensor", where=where, got=address)
        if isinstance(source, ModelRow):
            ids = self.tokenizers[address].ids
            number = source.token_id if source.token_id is not None else ids.get(str(source.token), -1)
            if not 0 <= number < there[place][1]:
                raise FuseError(
                    "there is no such row",
                    where=where,
                    got=source.token if source.token_id is None else source.token_id,
                    expected=f"a token of {address}, which has {there[place][1]} rows",
                )
            return place, number
        if positions[place] < 0:
            raise FuseError(
                "the model lacks the token",
                where=where,
                got=address,
                hint="name another model, or source: {kind: model_token, ...} with a token that it has",
            )
        return place, int(positions[place])

    def _files(self) -> dict[str, bytes]:
        """The result's files: the leader's, with the joined tokenizer."""
        model, owner = self.models[self.leader], self.everyone[self.owner]
        files = dict(model.files)
        values: dict[tuple[str, ...], Any] = {}
        if owner is not model:
            files = {n: data for n, data in files.items() if n not in FILES}
            files |= {n: data for n, data in owner.files.items() if n in FILES}
            values = self._special_ids(model.config, owner.config)
            if "generation_config.json" in files:
                generation = object_in(files, "generation_config.json")
                own = self._special_ids(generation, object_in(owner.files, "generation_config.json"))
                if own:
                    files["generation_config.json"] = json_bytes(changed(generation, own))
        if self.result is not self.tokenizers[self.owner]:
            files = written(self.result, files)
        return resized(model, files, self.size, values)

    def _special_ids(
        self, config: Mapping[str, Any], owners: Mapping[str, Any], around: tuple[str, ...] = ()
    ) -> dict[tuple[str, ...], Any]:
        """Ids of special tokens that have moved: what the config calls them, found again by the token."""
        tokens = self.tokenizers[self.leader].tokens
        found: dict[tuple[str, ...], Any] = {}
        for key, value in config.items():
            if isinstance(value, Mapping):
                inner = owners.get(key)
                found |= self._special_ids(value, inner if isinstance(inner, Mapping) else {}, (*around, key))
            elif key.endswith("_token_id") and value is not None:
                old = value if isinstance(value, list) else [value]
                new = [self.result.ids.get(tokens.get(i, "")) for i in old]
                moved: Any = new if isinstance(value, list) else new[0]
                if None in new:
                    moved = owners.get(key, value)
                if moved != value:
                    found[*around, key] = moved
        return found


def vocabulary_rows(model: Checkpoint) -> dict[str, tuple[int, int]]:
    """Every tensor with a row for each token, tied names among them: (axis, rows)."""
    found: dict[str, tuple[int, int]] = {}
    for name in (*model.names(), *model.aliases):
        spec = model.spec(name)
        axis = vocabulary_axis(name, spec, model.config)
        if axis is not None:
            found[name] = (axis, spec.shape[axis])
    return found


def rounded(size: int, multiple: int | None) -> int:
    """The next multiple, the size itself where none is asked for."""
    return size if not multiple else -(-size // multiple) * multiple


def resized(
    model: Checkpoint, files: dict[str, bytes], rows: int, values: Mapping[tuple[str, ...], Any] | None = None
) -> dict[str, bytes]:
    """The files with the config's vocabulary sizes, and other values of it, rewritten."""
    new = dict.fromkeys(vocabulary_sizes(model.config), rows) | dict(values or {})
    if any(at(model.config, path) != value for path, value in new.items()):
        files["config.json"] = json_bytes(changed(model.config, new))
    return files


def same_files(a: Checkpoint, b: Checkpoint) -> bool:
    """Whether two models have the same vocabulary, byte for byte: what spares most fuses the parsing."""
    return all(a.files.get(n) == b.files.get(n) for n in VOCABULARY_FILES) and (
        a.files.get(CONFIG) == b.files.get(CONFIG)
        or listed_tokens(a.files, a.where).keys() == listed_tokens(b.files, b.where).keys()
    )
