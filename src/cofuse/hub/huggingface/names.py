"""What may be committed: names that are safe everywhere, and files that cannot run code when they are opened."""

from __future__ import annotations

import io
import pickletools
import re
import unicodedata
import zipfile
from pathlib import Path

from ...errors import StoreError
from ...store.trees import check_path
from ..faults import Invalid, Refused

# Endings of files that are pickled, or may be, and so run code when they are opened; also when packed.
_PICKLED = re.compile(
    r".*\.(bin|pt|pth|ptl|pt2|pkl|pickle|cpkl|ckpt|joblib|dill|npy|npz|h5|hdf5|keras|mar|nemo)(\.(gz|bz2|xz|zst|lz4|z|zip))*"
)
# What training leaves beside a model, pickled, and nobody needs who loads it: clients are told to leave it out.
LEFT_OUT = re.compile(
    r"training_args\.bin|(optimizer|scheduler|scaler)(_\d+)?\.(pt|bin)|rng_state(_\d+)?\.pth|random_states_\d+\.pkl"
)
_RUNS = frozenset(["REDUCE", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "BUILD"])
_LOOK = 1024 * 1024  # bytes of a file in which an old pickle is looked for
_MOST_NAMES = 100_000
_LIST = 128 * _MOST_NAMES  # bytes of a packed file's list of names


def check_name(path: str) -> str:
    """Refuse a path that is not one everywhere, or that looks like another.

    Raises:
        Invalid: it is one.

    >>> check_name("onnx/model.safetensors")
    'onnx/model.safetensors'
    """
    try:
        check_path(path)
    except StoreError as error:
        raise Invalid(error.what, got=error.got) from None
    bad = next((c for c in path if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")), None)
    if bad is not None:
        raise Invalid("a character that cannot be seen in a file's name", got=ascii(path[:80]), expected="none")
    if unicodedata.normalize("NFC", path) != path:
        raise Invalid("a file's name is not in its normal form", got=ascii(path[:80]), expected="Unicode NFC")
    if any(part != part.strip() or part.endswith(".") for part in path.split("/")):
        raise Invalid("a file's name begins or ends with a space, or ends with a dot", got=ascii(path[:80]))
    return path


def check_kind(path: str) -> None:
    """Refuse files that are pickled, by their names, however written.

    Raises:
        Refused: it is one.

    >>> check_kind("pytorch_model.BIN")
    Traceback (most recent call last):
    cofuse.hub.faults.Refused: only safetensors weights are taken
    ...
    """
    name = unicodedata.normalize("NFKC", path.rpartition("/")[2]).casefold()
    if _PICKLED.fullmatch(name):
        raise _refused(path)


def check_bytes(path: str, place: Path) -> None:
    """Refuse a file that is pickled under another name.

    Raises:
        Refused: it is.
    """
    with open(place, "rb") as file:
        first = file.read(_LOOK)
        if zipfile.is_zipfile(file) and _holds_pickles(place):
            raise _refused(path)
    if first[:1] == b"\x80" and first[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        raise _refused(path)
    if first[:6] == b"\x93NUMPY" and b"'O'" in first[:256]:
        raise _refused(path)
    if first[:1] in b"(]}cl\x80" and _runs(first):
        raise _refused(path)


class _Bounded(io.FileIO):
    """A file whose list of names is not taken into memory when it is one that nobody could have meant."""

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > _LIST:
            raise zipfile.BadZipFile("the list of names is too long")
        return super().read(size) or b""


def _holds_pickles(place: Path) -> bool:
    try:
        with _Bounded(place) as file, zipfile.ZipFile(file) as packed:
            names = packed.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return True  # it says that it is one, and cannot be looked into
    return len(names) > _MOST_NAMES or any(name.casefold().endswith((".pkl", ".pickle")) for name in names)


def _runs(first: bytes) -> bool:
    """Whether bytes are a pickle, of the first protocols, that calls something."""
    calls = False
    try:
        for code, _, _ in pickletools.genops(io.BytesIO(first)):
            calls = calls or code.name in _RUNS
            if code.name == "STOP":
                return calls
    except Exception:  # whatever a decoder trips over in what is no pickle
        return False
    return False


def _refused(path: str) -> Refused:
    return Refused(
        "only safetensors weights are taken",
        got=ascii(path[:200]),
        expected="NAME.safetensors",
        hint="pickled files can run code when they are opened: save_pretrained writes safetensors",
    )
