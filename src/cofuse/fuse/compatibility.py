"""Whether models fit together: what differs, between whom, what follows from it, and the setting that decides it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

from ..checkpoint import Checkpoint
from ..checkpoint.quantized import Dequantized, dequantized
from ..errors import CheckpointError
from .deltas import Deltas, measure_deltas
from .differences import CHECKS
from .findings import ORDER, Finding, Report

# Finetunes of one base differ by a few per cent of its norm; models trained apart by about 1.4 of it.
STRANGERS = 0.5
SAME_DIRECTION = 0.98
AGAINST = -0.1


def check(
    checkpoints: Mapping[str, Checkpoint],
    base: str | None = None,
    *,
    settled: Collection[str] = (),
    blocks: int | None = 2,
    threads: int | None = None,
) -> Report:
    """Compare every model with the base, or with the first model where there is none.

    Args:
        checkpoints: by address, as they were opened, the base among them.
        base: its address.
        settled: keys that the recipe gives (`tokenizer_source`, `chat_template`, `dtype`, `partial`, ...): differences
            that they decide become notes.
        blocks: see `measure_deltas`; 0 leaves the deltas out.
        threads: how many may read.

    Returns:
        A report; nothing is raised for what it is there to find.
    """
    leader = base if base is not None else next(iter(checkpoints))
    found: list[Finding] = []
    plain: dict[str, Checkpoint] = {}
    for address, checkpoint in checkpoints.items():
        try:
            plain[address] = dequantized(checkpoint)
        except CheckpointError as error:
            found.append(_quantised(address, error))
            continue
        found += _eight_bit(address, plain[address])
    for address, model in plain.items():
        if address != leader and leader in plain:
            for compare in CHECKS:
                found += compare(address, model, leader, plain[leader])
    deltas = None
    if blocks != 0 and leader in plain and len(plain) > 1:
        deltas = measure_deltas(plain, base if base in plain else None, blocks=blocks, threads=threads)
        found += _of_deltas(deltas, base is not None)
    given = frozenset(settled)
    kept = (replace(f, severity="note") if f.severity != "note" and given & {*f.keys} else f for f in found)
    ordered = sorted(kept, key=lambda f: ORDER.index(f.severity))
    return Report(tuple(a for a in checkpoints if a != base), base, tuple(ordered), deltas)


def _quantised(address: str, error: CheckpointError) -> Finding:
    return Finding(
        "stop",
        "quantisation",
        (address,),
        error.got or error.what,
        error.expected or "",
        "it cannot be fused",
        error.hint or "",
    )


def _eight_bit(address: str, model: Checkpoint) -> Iterator[Finding]:
    if isinstance(model, Dequantized):
        yield Finding(
            "note",
            "quantisation",
            (address,),
            f"{len(model.scaled)} tensors in fp8 with scales",
            "",
            f"they are read as {model.dtype}; the result is not quantised",
        )


def _of_deltas(deltas: Deltas, based: bool) -> Iterator[Finding]:
    for address, name in deltas.infinite.items():
        yield Finding("stop", "values", (address,), f"not finite in {name}", "", "the fuse is refused", "leave it out")
    if not deltas.looked or deltas.infinite:
        return
    for i, address in enumerate(deltas.models):
        relative = deltas.relative[i]
        if relative > STRANGERS:
            yield Finding(
                "warn",
                "distance",
                (address, deltas.base),
                f"{relative:.2f} of its norm away",
                "a few per cent for a finetune",
                "they do not seem to come from one base; their mean is likely worthless",
                "base_model, or other models",
            )
        elif relative == 0 and based:
            yield Finding(
                "warn",
                "distance",
                (address, deltas.base),
                "no difference",
                "",
                "its task vector is zero",
                "leave it out",
            )
        for j in range(i):
            if based and 0 in (deltas.relative[i], deltas.relative[j]):
                continue
            cosine = deltas.cosine[i][j]
            pair = (deltas.models[j], address)
            if deltas.distance(i, j) == 0 or (based and cosine > SAME_DIRECTION):
                yield Finding(
                    "warn",
                    "direction",
                    pair,
                    f"cosine {cosine:.3f}",
                    "",
                    "nearly the same change counts twice",
                    "weight",
                )
            elif based and cosine < AGAINST:
                yield Finding(
                    "warn", "direction", pair, f"cosine {cosine:.3f}", "", "they undo each other",
                    "merge_method: ties, or other weights", ("merge_method: ties",),
                )  # fmt: skip
