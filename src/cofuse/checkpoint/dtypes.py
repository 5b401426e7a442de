"""The dtypes of the safetensors format, known without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# code in the file -> (bits an element, name in torch)
DTYPES: dict[str, tuple[int, str | None]] = {
    "BOOL": (8, "bool"),
    "U8": (8, "uint8"),
    "I8": (8, "int8"),
    "U16": (16, "uint16"),
    "I16": (16, "int16"),
    "U32": (32, "uint32"),
    "I32": (32, "int32"),
    "U64": (64, "uint64"),
    "I64": (64, "int64"),
    "F4": (4, None),
    "F6_E2M3": (6, None),
    "F6_E3M2": (6, None),
    "F8_E4M3": (8, "float8_e4m3fn"),
    "F8_E4M3FNUZ": (8, "float8_e4m3fnuz"),
    "F8_E5M2": (8, "float8_e5m2"),
    "F8_E5M2FNUZ": (8, "float8_e5m2fnuz"),
    "F8_E8M0": (8, "float8_e8m0fnu"),
    "F16": (16, "float16"),
    "BF16": (16, "bfloat16"),
    "F32": (32, "float32"),
    "F64": (64, "float64"),
    "C64": (64, "complex64"),
}

FLOATING = frozenset(code for code in DTYPES if code.startswith(("F", "BF")))


def bits(code: str) -> int:
    """Bits that one element takes.

    >>> bits("BF16")
    16
    """
    return DTYPES[code][0]


def torch_dtype(code: str) -> torch.dtype:
    """The torch dtype of a code.

    Raises:
        KeyError: torch has no such dtype (4- and 6-bit floats).
    """
    import torch

    name = DTYPES[code][1]
    if name is None or not hasattr(torch, name):
        raise KeyError(code)
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def code_of(dtype: torch.dtype) -> str:
    """The code of a torch dtype.

    Raises:
        KeyError: the format has no such dtype.
    """
    name = str(dtype).removeprefix("torch.")
    for code, (_, known) in DTYPES.items():
        if known == name:
            return code
    raise KeyError(name)
