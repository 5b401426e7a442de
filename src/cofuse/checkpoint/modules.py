"""What the names of a model's tensors say to a LoRA: modules, embeddings, tied and classification heads."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from fnmatch import fnmatchcase

from .architecture import HEAD, vocabulary_axis
from .checkpoint import Checkpoint

# Tables with a row for each token or position; no module's input is multiplied by them.
_EMBEDDING = re.compile(
    r"(?:^|\.)(?:embed_tokens|embed_positions|embed_in"
    r"|(?:word|token|tok|text|position|positional|token_type|patch_position)_embeddings?|embeddings?|wte|wpe|shared|relative_attention_bias)$"
)
# Models whose linear layers are Conv1D, with the weight the other way round.
_TRANSPOSED = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "gptsan-japanese"})
_TASKS = (
    ("ForCausalLM", "CAUSAL_LM"),
    ("LMHeadModel", "CAUSAL_LM"),
    ("ForConditionalGeneration", "SEQ_2_SEQ_LM"),
    ("ForSequenceClassification", "SEQ_CLS"),
    ("ForTokenClassification", "TOKEN_CLS"),
    ("ForQuestionAnswering", "QUESTION_ANS"),
)
# What PEFT keeps whole of its own accord for a task; the file must have it.
_HEADS = {"SEQ_CLS": ("classifier", "score"), "TOKEN_CLS": ("classifier", "score"), "QUESTION_ANS": ("qa_outputs",)}


def modules_of(checkpoint: Checkpoint) -> set[str]:
    """Modules that have a weight."""
    return {name.rpartition(".")[0] for name in (*checkpoint.names(), *checkpoint.aliases) if name.endswith(".weight")}


def short_names(chosen: set[str], everything: set[str]) -> list[str]:
    """Names for PEFT: the last part where all modules that end in it are chosen, else the whole name."""
    last: defaultdict[str, set[str]] = defaultdict(set)
    for module in everything | chosen:
        last[module.rpartition(".")[2]].add(module)
    shown = set()
    for module in chosen:
        end = module.rpartition(".")[2]
        # A list's element is called by its number, which many modules are.
        shown.add(end if last[end] <= chosen and not end.isdigit() else module)
    return sorted(shown)


def named(module: str, names: Sequence[str]) -> bool:
    """Whether a module goes by one of these names, or ends in it."""
    return any(module == name or module.endswith("." + name) for name in names)


def fits(module: str, pattern: str) -> bool:
    """Whether a module fits a glob, or has this in its name."""
    return fnmatchcase(module, pattern) if any(c in pattern for c in "*?[") else pattern in module


def is_table(name: str, base: Checkpoint) -> bool:
    """Whether a tensor is an embedding's."""
    spec = base.spec(name) if name in base else None
    if spec is None or len(spec.shape) != 2 or not name.endswith(".weight") or HEAD.search(name):
        return False
    return bool(_EMBEDDING.search(name.removesuffix(".weight"))) or vocabulary_axis(name, spec, base.config) == 0


def tied_heads(base: Checkpoint, tables: Sequence[str]) -> dict[str, str]:
    """Heads that share the weight of one of these embeddings, with its name."""
    found = {alias: kept for alias, kept in base.aliases.items() if kept in tables and HEAD.search(alias)}
    words = [n for n in tables if vocabulary_axis(n, base.spec(n), base.config) == 0]
    if found or len(words) != 1 or base.config.get("tie_word_embeddings", True) is False:
        return found
    # The files of a tied model need not name the head; its class says whether there is one.
    names = base.names()
    end = str((base.config.get("architectures") or [""])[0])
    if any(HEAD.search(name) for name in names):
        return {}
    if end.endswith("ForMaskedLM"):
        bert = any(name.startswith("cls.predictions.") for name in names)
        return {"cls.predictions.decoder.weight" if bert else "lm_head.decoder.weight": words[0]}
    return {"lm_head.weight": words[0]} if task_of(base) in ("CAUSAL_LM", "SEQ_2_SEQ_LM") else {}


def is_transposed(base: Checkpoint) -> bool:
    """Whether linear layers keep their weights as [in, out]."""
    return base.config.get("model_type") in _TRANSPOSED


def task_of(base: Checkpoint) -> str | None:
    """What PEFT calls the task of a model of this class."""
    architectures = base.config.get("architectures")
    name = str(architectures[0]) if isinstance(architectures, list) and architectures else ""
    if not name:
        return None
    return next((task for end, task in _TASKS if name.endswith(end)), "FEATURE_EXTRACTION")


def head_of(module: str, base: Checkpoint) -> str | None:
    """The classification head that a module is, or is in; None for any other."""
    parts = module.split(".")
    for i, part in enumerate(parts):
        if part in _HEADS.get(task_of(base) or "", ()):
            return ".".join(parts[: i + 1])
    return None
