"""PEFT is the oracle: an adapter as a patch is what PEFT merges, and a patch as an adapter is what the patch gives."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from checkpoint.test_adapter import CASES, trained
from peft import PeftModel

from cofuse.checkpoint import Memory, content_id
from cofuse.checkpoint.adapter import Adapter
from cofuse.checkpoint.views import with_files
from cofuse.errors import PatchError
from cofuse.patch import LowRank, apply, make
from cofuse.patch.adapters import FromAdapter, save_adapter

from .models import finetuned

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

PLAIN = [
    "lora", "lora on everything", "rslora", "patterns", "patterns and rslora", "modules to save", "classification",
    "lora under a class", "bias of lora", "embeddings", "conv1d", "conv1d, embeddings", "llama", "tied", "vit", "convolutions",
]  # fmt: skip


@pytest.mark.parametrize("case", [*PLAIN, "dora", "ia3", "lora bias", "tied, embedding", "tied, head saved"])
def test_an_adapter_as_a_patch_is_what_peft_merges(case: str, tmp_path: Path) -> None:
    base, merged, folder = trained(*CASES[case], tmp_path / "adapter")
    adapter = Adapter(folder, base)
    patch = make(base, adapter, tmp_path / "x.patch", FromAdapter(adapter))
    applied = apply(base, patch)
    assert content_id(applied) == patch.result
    assert set(applied.names()) | set(applied.aliases) == set(merged)
    for name, expected in merged.items():
        torch.testing.assert_close(applied.read(name), expected, rtol=1e-5, atol=1e-5)
    products = [c for c in patch.manifest.tensors.values() if c.how == "product"]
    assert bool(products) == (case not in ("dora", "ia3"))
    assert max((c.most for c in products), default=0) < 1e-5  # it says what rounding left


@pytest.mark.parametrize("case", PLAIN)
def test_and_back(case: str, tmp_path: Path) -> None:
    """As Cofuse opens it, and as PEFT loads and merges it."""
    base, merged, folder = trained(*CASES[case], tmp_path / "adapter")
    if case.startswith("conv1d"):  # Conv1D keeps its weight the other way round, which only the config says
        base = with_files(base, {"config.json": b'{"model_type": "gpt2"}'})
    adapter = Adapter(folder, base)
    patch = make(base, adapter, tmp_path / "x.patch", FromAdapter(adapter))
    save_adapter(apply(base, patch), tmp_path / "back", "base")
    back = Adapter(tmp_path / "back", base)
    for name in back.names():
        torch.testing.assert_close(back.read(name), merged[name], rtol=1e-5, atol=1e-5)
    if case == "convolutions":  # nothing says that a module called `emb` is an embedding
        return
    torch.manual_seed(0)
    model = CASES[case][0]().eval()
    model.load_state_dict({name: base.read(name) for name in (*base.names(), *base.aliases)})
    loaded = PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "back").merge_and_unload().state_dict()
    for name, expected in merged.items():
        torch.testing.assert_close(loaded[name], expected, rtol=1e-5, atol=1e-5)


def test_ranks_and_scales_come_back(tmp_path: Path) -> None:
    base, _, folder = trained(*CASES["patterns and rslora"], tmp_path / "adapter")
    adapter = Adapter(folder, base)
    patch = make(base, adapter, tmp_path / "x.patch", FromAdapter(adapter))
    config = CASES["patterns and rslora"][1]
    for change in patch.manifest.tensors.values():
        assert change.rank == 5
        assert change.scale == pytest.approx(config.lora_alpha / 5**0.5)
    save_adapter(apply(base, patch), tmp_path / "back", "hf:org/name@main")
    said = json.loads((tmp_path / "back" / "adapter_config.json").read_bytes())
    assert (said["r"], said["base_model_name_or_path"], said["revision"]) == (5, "org/name", "main")
    assert said["lora_alpha"] / 5 == pytest.approx(config.lora_alpha / 5**0.5)


def test_a_finetune_of_low_rank_becomes_an_adapter(tmp_path: Path) -> None:
    """Biases beside products, norms and embeddings as whole modules."""
    make_model, _ = CASES["lora"]
    torch.manual_seed(0)
    state = {n: t for n, t in make_model().state_dict().items() if t.is_floating_point()}
    base = Memory(
        copy.deepcopy(state), files={"config.json": b'{"architectures": ["BertModel"], "model_type": "bert"}'}
    )
    tuned = Memory(finetuned(state, 1, 0.1), files=base.files)
    applied = apply(base, make(base, tuned, tmp_path / "x.patch", LowRank(rank=2)))
    save_adapter(applied, tmp_path / "out", "base")
    back = Adapter(tmp_path / "out", base)
    for name in applied.names():
        torch.testing.assert_close(back.read(name), applied.read(name), rtol=1e-5, atol=1e-5)
    model = make_model().eval()
    model.load_state_dict(state, strict=False)
    loaded = PeftModel.from_pretrained(model, tmp_path / "out").merge_and_unload().state_dict()
    for name in applied.names():
        torch.testing.assert_close(loaded[name], applied.read(name), rtol=1e-5, atol=1e-5)


def test_what_is_no_adapter_is_refused(tmp_path: Path) -> None:
    base = Memory({"a.weight": torch.zeros(4, 4), "b": torch.zeros(9, 9)})
    for tuned in ({"a.weight": torch.ones(4, 4), "b": torch.zeros(9, 9)}, {"a.weight": torch.zeros(4, 4)}):
        with pytest.raises(PatchError, match="no adapter"):
            save_adapter(apply(base, make(base, Memory(tuned), tmp_path / "x.patch")), tmp_path / "out", "base")
    assert not (tmp_path / "out").exists()
