"""A fused checkpoint: lazy, the same bytes for any schedule, and refused before anything is written."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from cofuse.checkpoint import BLOCK_BYTES, Checkpoint, Memory, TensorSpec, open_local, save
from cofuse.errors import CofuseError, FuseError
from cofuse.fuse import METHODS, Fused, Place, Recipe, fuse, fuse_recipe

from .laws import LAWS, statistics

every_method = pytest.mark.parametrize("method", METHODS)


class Watched(Memory):
    """Counts the bytes that are read from it."""

    bytes_read = 0

    def read_bytes(self, name: str, start: int = 0, stop: int | None = None) -> bytearray:
        data = super().read_bytes(name, start, stop)
        self.bytes_read += len(data)
        return data


def tensors(seed: int, size: int = 300_000) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "big": torch.randn(size, generator=generator),
        "half": torch.randn(size // 4 + 1, generator=generator).bfloat16(),
        "small": torch.randn(3, 5, generator=generator),
        "ids": torch.arange(9),
    }


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def fused(method: str, models: list[Checkpoint], base: Checkpoint) -> Fused:
    laws = LAWS[method]
    own = base if METHODS[method].needs_base else None
    some = models[: laws.models]
    return fuse(method, some, base=own, statistics=statistics(method, some), **laws.ordinary)


@every_method
def test_saved_bytes_do_not_depend_on_the_schedule(method: str, tmp_path: Path) -> None:
    models: list[Checkpoint] = [Memory(tensors(i)) for i in range(3)]
    whole = fused(method, models, Memory(tensors(9)))
    ids = set()
    threads_before = torch.get_num_threads()
    try:
        for threads, own_threads, block in [(1, 1, BLOCK_BYTES), (2, 2, 8), (2, 1, 4096), (8, 2, 40_000)]:
            torch.set_num_threads(own_threads)
            part = fused(method, [Memory(tensors(i, 3000)) for i in range(3)], Memory(tensors(9, 3000)))
            save(part if block == 8 else whole, tmp_path / "out", threads=threads, block=block)
            ids.add((block == 8, digest(tmp_path / "out")))
        save(part, tmp_path / "out", threads=1)
        ids.add((True, digest(tmp_path / "out")))
    finally:
        torch.set_num_threads(threads_before)
    assert len(ids) == 2


def test_saved_bytes_do_not_depend_on_the_hash_seed(tmp_path: Path) -> None:
    for i in range(3):
        Memory(tensors(i, 20_000), metadata={"note": "x", "other": "y"}).save(tmp_path / str(i))
    code = (
        "import sys; from pathlib import Path; import cofuse; p = Path(sys.argv[1]);"
        "m = [cofuse.open(p / str(i)) for i in range(3)];"
        "cofuse.fuse('task_arithmetic', m[1:], base=m[0]).save(p / sys.argv[2], threads=2)"
    )
    ids = set()
    for seed in ("0", "1"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", code, str(tmp_path), f"out{seed}"], check=True, env=environment)
        ids.add(digest(tmp_path / f"out{seed}"))
    models = [open_local(tmp_path / str(i)) for i in range(3)]
    fuse("task_arithmetic", models[1:], base=models[0]).save(tmp_path / "here", threads=1)
    assert ids == {digest(tmp_path / "here")}


@every_method
def test_reading_equals_what_is_saved(method: str, tmp_path: Path) -> None:
    lazy = fused(method, [Memory(tensors(i, 1000)) for i in range(3)], Memory(tensors(9, 1000)))
    lazy.save(tmp_path / "out")
    kept = open_local(tmp_path / "out")
    assert set(kept.names()) == set(lazy.names())
    for name in lazy.names():
        assert kept.spec(name) == lazy.spec(name)
        assert bytes(kept.read_bytes(name)) == bytes(lazy.read_bytes(name))
        assert torch.equal(kept.read(name), lazy.read(name))


def test_nothing_is_read_until_it_is_asked_for() -> None:
    models = [Watched(tensors(i)) for i in range(3)]
    lazy = fuse("linear", models)
    assert lazy.spec("big") == TensorSpec("F32", (300_000,))
    assert sum(m.bytes_read for m in models) == 0
    lazy.read("small")
    assert [m.bytes_read for m in models] == [60, 60, 60]
    lazy.read("ids")
    assert [m.bytes_read for m in models] == [132, 60, 60]
    assert lazy.plan.bytes_read == sum(3 * lazy.spec(n).nbytes for n in ("big", "half", "small")) + 72
    assert lazy.plan.bytes_written == sum(lazy.spec(n).nbytes for n in lazy.names())


def test_a_fuse_of_fuses_is_one_lazy_checkpoint(tmp_path: Path) -> None:
    models = [Watched(tensors(i, 1000)) for i in range(4)]
    pairs = [fuse("linear", models[:2]), fuse("linear", models[2:])]
    nested = fuse("task_arithmetic", pairs, base=models[0], scale=0.5)
    assert sum(m.bytes_read for m in models) == 0
    nested.save(tmp_path / "lazy", threads=2)
    for i, pair in enumerate(pairs):
        pair.save(tmp_path / str(i))
    step = [open_local(tmp_path / str(i)) for i in range(2)]
    fuse("task_arithmetic", step, base=models[0], scale=0.5).save(tmp_path / "written")
    assert digest(tmp_path / "lazy") == digest(tmp_path / "written")


def test_tied_names_stay_tied(tmp_path: Path) -> None:
    def tied(seed: int, *, apart: bool = False, other: bool = False) -> Memory:
        w = torch.full((2, 2), float(seed))
        names = ("head", "emb") if other else ("emb", "head")
        return Memory({names[0]: w, names[1]: w + 1 if apart else w})

    got = fuse("linear", [tied(1), tied(3, other=True)])
    assert got.names() == ("emb",)
    assert dict(got.aliases) == {"head": "emb"}
    assert got.read("head").tolist() == got.read("emb").tolist() == [[2.0, 2.0], [2.0, 2.0]]
    got.save(tmp_path / "out")
    assert dict(open_local(tmp_path / "out").aliases) == {"head": "emb"}
    # A model that has changed one of the two is not silently given back its tie.
    got = fuse("linear", [tied(1), tied(3, apart=True)])
    assert got.names() == ("emb", "head")
    assert not got.aliases
    assert got.read("head").tolist() == [[2.5, 2.5], [2.5, 2.5]]
    assert fuse("linear", [tied(1, apart=True), tied(3)]).read("head").tolist() == [[2.5, 2.5], [2.5, 2.5]]


def test_files_names_and_dtypes_come_from_the_base() -> None:
    base = Memory({"x": torch.zeros(2).half()}, files={"config.json": b"{}"}, metadata={"note": "base"})
    tuned = Memory({"x": torch.ones(2)}, files={"config.json": b"{1}"})
    got = fuse("linear", [tuned, tuned], base=base)
    assert got.files["config.json"] == b"{}"
    assert got.metadata["note"] == "base"
    assert got.read("x").dtype == torch.float16
    assert fuse("linear", [tuned, base]).files["config.json"] == b"{1}"
    assert "linear of 2 models" in got.where
    with pytest.raises(CofuseError, match="no such tensor"):
        got.read("y")


def test_dtypes_may_be_mixed_and_another_asked_for() -> None:
    exact = 1 + 2.0**-40
    models = [Memory({"x": torch.tensor([exact], dtype=torch.float64)}), Memory({"x": torch.ones(1)})]
    assert fuse("linear", models).read("x").item() == 1 + 2.0**-41
    for word, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)):
        recipe = Recipe.model_validate(
            {"merge_method": "linear", "models": [{"model": "a"}, {"model": "b"}], "dtype": word}
        )
        assert fuse_recipe(recipe, dict(zip("ab", models, strict=True))).read("x").dtype == dtype
    # Cancelled in float64 although the result is float32.
    recipe = Recipe.model_validate(
        {
            "merge_method": "linear",
            "models": [{"model": "a", "parameters": {"weight": 1}}, {"model": "b", "parameters": {"weight": -1}}],
            "parameters": {"normalize": False},
            "dtype": "bfloat16",
            "out_dtype": "float32",
        }
    )
    assert fuse_recipe(recipe, dict(zip("ab", models, strict=True))).read("x").item() == 2.0**-40


BASE = {"a": torch.zeros(2, 3), "b": torch.zeros(4)}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"a": None}, ["a tensor is missing", "no a"]),
        ({"b": torch.zeros(5)}, ["a tensor has another shape", ": b", "[5]", "[4]"]),
        ({"b": torch.zeros(4, dtype=torch.int64)}, ["another kind of dtype", "I64"]),
        ({"head.w": torch.zeros(1), "head.b": torch.zeros(1)}, ["tensors that the base lacks", "head.w", "--like BASE"]),
        ({"b": torch.zeros(4, dtype=torch.complex64)}, ["another kind of dtype", "C64"]),
    ],
    ids=["missing", "shape", "integers", "head", "complex"],
)  # fmt: skip
@pytest.mark.parametrize("place", [0, 1])
def test_models_that_do_not_fit_are_refused_before_any_output(
    changed: dict[str, torch.Tensor | None], said: list[str], place: int, tmp_path: Path
) -> None:
    odd = Watched({k: v for k, v in {**BASE, **changed}.items() if v is not None}, where="odd model")
    models: list[Checkpoint] = [Memory(BASE), Memory(BASE)]
    models.insert(place, odd)
    with pytest.raises(FuseError) as caught:
        fuse("task_arithmetic", models, base=Memory(BASE)).save(tmp_path / "out")
    assert all(word in str(caught.value) for word in said), caught.value
    assert "odd model" in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    assert odd.bytes_read == 0


@pytest.mark.parametrize("dtype", [torch.float8_e8m0fnu, torch.complex64])
def test_what_cannot_be_averaged_is_refused_and_not_copied(dtype: torch.dtype) -> None:
    models = [Memory({"x": torch.ones(2).to(dtype)}) for _ in range(2)]
    with pytest.raises(FuseError, match="cannot be averaged"):
        fuse("linear", models)


@pytest.mark.parametrize(
    ("method", "arguments", "said"),
    [
        ("linaer", {}, ['did you mean "linear"?']),
        ("linear", {"wieght": 1.0}, ['no parameter "wieght"', 'did you mean "weight"?']),
        ("linear", {"weights": [1.0]}, ["as many weights as models", "got:      1", "expected: 2"]),
        ("linear", {"weights": [1.0, 2.0, 3.0]}, ["as many weights as models"]),
        ("linear", {"weights": [1.0, -1.0]}, ["the weights sum to zero", "normalize: false"]),
        ("linear", {"weights": [0.0, 0.0]}, ["the weights sum to zero"]),
        ("linear", {"weights": [0.1 + 0.2, -0.3]}, ["the weights sum to zero"]),
        ("linear", {"weights": [float("nan"), 1.0]}, ["finite"]),
        ("linear", {"weight": float("inf")}, ["finite"]),
        ("linear", {"weight": True}, ["is a number"]),
        ("linear", {"normalize": 2}, ["true or false"]),
        ("task_arithmetic", {}, ["base_model"]),
    ],
)
def test_a_fuse_asked_for_wrongly_is_refused(method: str, arguments: dict[str, object], said: list[str]) -> None:
    with pytest.raises(FuseError) as caught:
        fuse(method, [Memory(BASE), Memory(BASE)], **arguments)  # type: ignore[arg-type]
    assert all(word in str(caught.value) for word in said), caught.value


def test_no_models_are_refused() -> None:
    with pytest.raises(FuseError):
        fuse("linear", [])


@every_method
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_is_refused(method: str, value: float, tmp_path: Path) -> None:
    bad = Memory({"x": torch.tensor([1.0, value])}, where="bad model")
    good = Memory({"x": torch.ones(2)}, where="good model")
    (tmp_path / "out").mkdir()
    with pytest.raises(FuseError, match="a value is not finite") as caught:
        fused(method, [bad, good, good, good, good], good).save(tmp_path / "out")
    assert caught.value.where == "bad model: x"
    assert list((tmp_path / "out").iterdir()) == []


def test_a_result_too_large_for_its_dtype_is_refused() -> None:
    models = [Memory({"x": torch.full((2,), 60_000.0).half()}) for _ in range(2)]
    assert fuse("linear", models).read("x").tolist() == [60_000.0, 60_000.0]
    with pytest.raises(FuseError, match="too large for its dtype"):
        fuse("linear", models, normalize=False).read("x")
    huge = [Memory({"x": torch.full((2,), 3e38)}) for _ in range(2)]  # finite, although their sum is not
    assert fuse("linear", huge).read("x").tolist() == huge[0].read("x").tolist()


def test_an_executor_of_ones_own_computes_the_blocks() -> None:
    asked: list[tuple[str, int, int]] = []

    class Ones:
        def block(self, fused: Fused, name: str, index: int) -> npt.NDArray[np.uint8]:
            asked.append((name, index))
            return np.ones(fused.block_shape(fused.place(name, index)), np.float32).view(np.uint8)

        def combine(self, fused: Fused, name: str, start: int, out: npt.NDArray[np.uint8]) -> bool:
            return False

        def survey(self, fused: Fused, name: str, places: list[Place]) -> object:
            raise NotImplementedError

    models = [Memory({"x": torch.zeros(4), "ids": torch.arange(2)}) for _ in range(2)]
    got = fuse("linear", models, executor=Ones())
    assert got.read("x").tolist() == [1.0] * 4
    assert got.read("ids").tolist() == [0, 1]
    assert asked == [("x", 0)]


def test_a_base_among_the_models_counts_for_nothing() -> None:
    # As in mergekit, whose users list the base first.
    recipe = Recipe.model_validate(
        {
            "merge_method": "task_arithmetic",
            "base_model": "base",
            "models": [{"model": "base"}, {"model": "a"}, {"model": "b", "parameters": {"weight": 3}}],
            "parameters": {"normalize": True},
        }
    )
    base, a, b = (Memory({"x": torch.tensor([v])}) for v in (1.0, 3.0, 7.0))
    got = fuse_recipe(recipe, {"base": base, "a": a, "b": b})
    assert got.read("x").item() == 1 + (2 + 3 * 6) / 4
    assert len(got.plan.tensors["x"].inputs) == 2
