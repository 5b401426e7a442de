"""Model cards: of a fused checkpoint (from what, the recipe, how to make it again) and of an extracted adapter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import yaml

from .._version import __version__

if TYPE_CHECKING:
    from .lora import Extracted
    from .record import Record

CARD = "README.md"

_CARD = """\
---
{front}---

# A merge by {method}

Made by Cofuse {version} from {count}; nothing was trained.

| input | content id |
|---|---|
{rows}

Content id of the result: `{content}`

## Recipe

```yaml
{recipe}```

## Made again

`cofuse replay FOLDER` reads this folder's `cofuse.json`, makes the checkpoint again from its inputs, and compares every
tensor. Relative paths start where it is run, or at `--from`.
"""


def card(record: Record, hub: Mapping[str, str]) -> bytes:
    """The card of what a record describes, in Markdown with the front matter of the Hugging Face hub.

    Args:
        record: what was made from what.
        hub: Hugging Face ids by address; only these are named as base models, where a path would mean nothing.
    """
    # Each once, in the recipe's order; what was measured on the models is no base.
    measured = {a for _, given in record.read_recipe().given() for a in given.statistics.values()}
    bases = list(dict.fromkeys(hub[i.address] for i in record.inputs if i.address in hub and i.address not in measured))
    front: dict[str, Any] = {"base_model": bases, "base_model_relation": "merge"} if bases else {}
    front |= {"library_name": "transformers", "tags": ["merge", "cofuse"]}
    count = sum(i.address not in measured for i in record.inputs)
    text = _CARD.format(
        front=yaml.safe_dump(front, sort_keys=False, allow_unicode=True),
        method=record.recipe["merge_method"],
        version=record.versions["cofuse"],
        count=("one checkpoint" if count == 1 else f"{count} checkpoints")
        + (" and their statistics" if measured else ""),
        rows="\n".join(
            f"| {_linked(i.address, hub)} | {f'`{i.content[:16]}`' if i.content else 'no tensor read'} |"
            for i in record.inputs
        ),
        content=record.output.content,
        recipe=yaml.safe_dump(record.recipe, sort_keys=False, allow_unicode=True),
    )
    return text.encode()


def _linked(address: str, hub: Mapping[str, str]) -> str:
    shown = address.replace("|", "\\|").replace("`", "'")
    if address in hub:
        return f"[{shown}](https://huggingface.co/{hub[address]})"
    return f"`{shown}`"


_LORA_CARD = """\
---
{front}---

# A LoRA extracted from {tuned}

Extracted by Cofuse {version} from {tuned}, to be used on {base}.

{count} products of rank {ranks}; {whole} tensors kept whole. Of the whole change (its Frobenius norm) {error} is left
out; `cofuse.json` says how much of each tensor.
"""


def lora_card(extracted: Extracted, base: str, tuned: str, hub: Mapping[str, str]) -> bytes:
    """The card of an extracted adapter.

    Args:
        extracted: what was found.
        base: the base's address.
        tuned: the tuned model's.
        hub: Hugging Face ids by address.
    """
    front: dict[str, Any] = {"base_model": hub[base], "base_model_relation": "adapter"} if base in hub else {}
    front |= {"library_name": "peft", "tags": ["lora", "cofuse"]}
    ranks = sorted({product.rank for product in extracted.products.values()})
    return _LORA_CARD.format(
        front=yaml.safe_dump(front, sort_keys=False, allow_unicode=True),
        version=__version__,
        base=_linked(base, hub),
        tuned=_linked(tuned, hub),
        count=len(extracted.products),
        ranks=f"{ranks[0]}" if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}",
        whole=len(extracted.whole) + len(extracted.biases),
        error=f"{extracted.error:.2%}",
    ).encode()
