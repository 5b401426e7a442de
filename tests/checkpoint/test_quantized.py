"""fp8 weights with scales are read as the floats they stand for."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from cofuse.checkpoint import Memory, save
from cofuse.checkpoint.quantized import Dequantized, dequantized
from cofuse.errors import CheckpointError
from cofuse.fuse import fuse


def quantised(
    shape: tuple[int, ...], scales: tuple[int, ...], *, end: str = "_scale_inv", config: dict[str, object] | None = None
) -> tuple[Memory, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(len(shape) + sum(scales))
    weight = torch.randn(shape, generator=generator).to(torch.float8_e4m3fn)
    scale = torch.rand(scales, generator=generator) + 0.1
    held = {"x.weight": weight, f"x.weight{end}": scale, "x.input_scale": torch.ones(()), "norm.weight": torch.ones(3)}
    files = {"config.json": json.dumps(config or {"quantization_config": {"quant_method": "fp8"}}).encode()}
    return Memory(held, files=files), weight, scale


def twin(weight: torch.Tensor, scale: torch.Tensor, block: tuple[int, int] = (128, 128)) -> torch.Tensor:
    """One element at a time."""
    out = weight.float().reshape(-1, *weight.shape[-2:]).clone()
    flat = scale.reshape(-1, *scale.shape[-2:]) if scale.dim() > 1 else scale.reshape(1, -1, 1)
    for m in range(out.shape[0]):
        for i in range(out.shape[1]):
            for j in range(out.shape[2]):
                row = i if flat.shape[1] == out.shape[1] else 0 if flat.shape[1] == 1 else i // block[0]
                column = 0 if flat.shape[2] == 1 else j // block[1]
                out[m, i, j] *= flat[m if flat.shape[0] > 1 else 0, row, column]
    return out.reshape(weight.shape).to(torch.bfloat16)


@pytest.mark.parametrize(
    ("shape", "scales", "end", "config"),
    [
        ((200, 130), (2, 2), "_scale_inv", None),  # DeepSeek: blocks of 128 x 128, the last ones cut
        ((6, 8), (3, 2), "_scale_inv", {"quantization_config": {"quant_method": "fp8", "weight_block_size": [2, 4]}}),
        ((5, 7), (), "_scale", None),
        ((5, 7), (1,), "_scale", None),
        ((5, 7), (5,), "_scale", None),
        ((5, 7), (5, 1), "_scale", None),
        ((3, 5, 7), (3, 1, 1), "_scale", None),  # experts in one tensor
        (
            (4, 6),
            (4, 2),
            "_scale",
            {"quantization_config": {"config_groups": {"group_0": {"weights": {"group_size": 3}}}}},
        ),
    ],
)
def test_weights_are_what_their_scales_make_them(
    shape: tuple[int, ...], scales: tuple[int, ...], end: str, config: dict[str, object] | None
) -> None:
    model, weight, scale = quantised(shape, scales, end=end, config=config)
    view = dequantized(model)
    block = {6: (2, 4), 4: (1, 3)}.get(shape[0], (128, 128))
    expected = twin(weight, scale, block)
    assert view.names() == ("x.weight", "norm.weight")
    assert torch.equal(view.read("x.weight"), expected)
    assert torch.equal(view.read("norm.weight"), torch.ones(3))
    assert "quantization_config" not in view.config
    assert [n for n in view.names() if view.spec(n).dtype == "BF16"] == ["x.weight"]


def test_any_range_has_the_bytes_of_the_whole() -> None:
    model, _, _ = quantised((9, 13), (9, 1), end="_scale")
    view = dequantized(model)
    whole = bytes(view.read_bytes("x.weight"))
    for start, stop in [(0, 2), (3, 3), (5, 100), (24, 54), (0, len(whole)), (len(whole) - 1, len(whole))]:
        assert bytes(view.read_bytes("x.weight", start, stop)) == whole[start:stop]
        out = np.zeros(stop - start, np.uint8)
        view.read_into("x.weight", start, out.data)
        assert out.tobytes() == whole[start:stop]
    assert b"".join(bytes(view.read_bytes("x.weight", *b)) for b in view.blocks("x.weight", 16)) == whole


def test_a_quantised_model_fuses_with_a_plain_one(tmp_path: object) -> None:
    model, weight, scale = quantised((200, 130), (2, 2))
    plain = Memory({"x.weight": torch.zeros(200, 130, dtype=torch.bfloat16), "norm.weight": torch.ones(3)})
    got = fuse("linear", [plain, dequantized(model)]).read("x.weight")
    assert torch.equal(got, (twin(weight, scale).float() / 2).to(torch.bfloat16))
    save(dequantized(model), f"{tmp_path}/plain")


def test_the_dtype_is_the_configs() -> None:
    config = {"torch_dtype": "float16", "quantization_config": {"quant_method": "fp8"}}
    model, _, _ = quantised((4, 4), (), end="_scale", config=config)
    assert dequantized(model).spec("x.weight").dtype == "F16"
    assert dequantized(model, "F32").spec("x.weight").dtype == "F32"


def test_what_has_no_scales_stays_as_it_is() -> None:
    for model in (
        Memory({"x": torch.zeros(2)}),
        Memory({"x.weight": torch.zeros(2, 2).to(torch.float8_e4m3fn)}),
    ):
        assert dequantized(model) is model
    assert isinstance(dequantized(quantised((4, 4), ())[0]), Dequantized)


@pytest.mark.parametrize(
    ("tensors", "config"),
    [
        ({"x.qweight": torch.zeros(2, dtype=torch.int32)}, {}),
        ({"x.weight": torch.zeros(2, dtype=torch.uint8)}, {"quantization_config": {"quant_method": "bitsandbytes"}}),
        ({"x.weight": torch.zeros(2)}, {"quantization_config": {"quant_method": "gptq"}}),
    ],
)
def test_integers_are_refused(tensors: dict[str, torch.Tensor], config: dict[str, object]) -> None:
    model = Memory(tensors, files={"config.json": json.dumps(config).encode()})
    with pytest.raises(CheckpointError, match=r"quantised to integers[\s\S]*fuse the model it was quantised from"):
        dequantized(model)


def test_scales_that_do_not_fit_are_refused() -> None:
    with pytest.raises(CheckpointError, match="do not fit"):
        dequantized(quantised((200, 130), (3, 2))[0])


def test_scales_may_be_powers_of_two() -> None:
    model, weight, _ = quantised((4, 4), (), end="_scale")
    scale = torch.tensor(0.25).to(torch.float8_e8m0fnu)
    held = Memory({"x.weight": weight, "x.weight_scale": scale}, files=model.files)
    assert torch.equal(dequantized(held).read("x.weight"), (weight.float() / 4).to(torch.bfloat16))


@pytest.mark.parametrize(("shape", "scales"), [((256, 128), (2, 1)), ((6, 8), (3, 2)), ((3, 4, 6), (3, 2, 3))])
def test_transformers_gets_the_same(shape: tuple[int, ...], scales: tuple[int, ...]) -> None:
    peer = pytest.importorskip("transformers.integrations.finegrained_fp8")
    if not hasattr(peer, "Fp8Dequantize"):
        pytest.skip("this transformers has no Fp8Dequantize")
    block = [shape[-2] // scales[-2], shape[-1] // scales[-1]]
    config = {"quantization_config": {"quant_method": "fp8", "weight_block_size": block}}
    model, weight, scale = quantised(shape, scales, config=config)
    theirs = peer.Fp8Dequantize(None)._dequantize_one(weight, scale, torch.bfloat16)
    assert torch.equal(dequantized(model).read("x.weight"), theirs.to(torch.bfloat16))
