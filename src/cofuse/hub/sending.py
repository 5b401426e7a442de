"""Sending a contribution: files as uploads, then the offer. A folder remembers how far it is, so that it goes on after any end."""

from __future__ import annotations

import json
import secrets
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..checkpoint import Checkpoint, replace_file
from ..errors import HubError
from ..patch import make
from ..progress import SILENT, Progress
from ..store.receiving import Advance
from .client import HubClient

JOURNAL = "sending.json"
PATCH = "contribution.patch"
_PIECE = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Bundle:
    """What is sent: a patch, or weights by name; and a Fisher's files, if there is one."""

    patch: Path | None = None
    weights: Mapping[str, Path] | None = None
    fisher: Mapping[str, Path] | None = None

    def files(self) -> dict[str, Path]:
        """All files, by what they are."""
        found = {} if self.patch is None else {"patch": self.patch}
        found |= {f"weights/{name}": path for name, path in (self.weights or {}).items()}
        return found | {f"fisher/{name}": path for name, path in (self.fisher or {}).items()}


class Journal:
    """What is remembered in a folder of a contribution that is being made and sent.

    Args:
        folder: a folder of its own; made when something is first kept.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / JOURNAL
        self._kept: dict[str, Any] = {}
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
            self._kept = found if isinstance(found, dict) else {}
        except (OSError, ValueError):
            pass

    def get(self, key: str) -> Any:
        """What is kept under a key; None where nothing is."""
        return self._kept.get(key)

    def keep(self, **values: Any) -> None:
        """Keep values; they last once this returns."""
        self._kept |= values
        self.folder.mkdir(parents=True, exist_ok=True)
        replace_file(self._path, json.dumps(self._kept, sort_keys=True).encode())

    def end(self) -> None:
        """Forget all of it: the contribution has been taken."""
        self._path.unlink(missing_ok=True)
        self._kept = {}


def patch_of(base: Checkpoint, tuned: Checkpoint, folder: Path, progress: Progress = SILENT) -> Path:
    """Write the patch that gives a tuned body from its base.

    Raises:
        PatchError, CheckpointError: see `patch.make`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return make(base, tuned, folder / PATCH, progress=progress).path


def send(
    client: HubClient, bundle: Bundle, said: Mapping[str, Any], journal: Journal, progress: Progress = SILENT
) -> dict[str, Any]:
    """Upload what has not arrived yet, and offer it.

    Args:
        client: the repository.
        bundle: the files.
        said: title, base, data, ...; see `contributions.Offer`.
        journal: where it is remembered which uploads these are.
        progress: told of every piece.

    Returns:
        The contribution, as the hub answers.

    Raises:
        HubError: the hub refuses it, or cannot be reached: the same call goes on where this one was.
    """
    files = bundle.files()
    total = sum(path.stat().st_size for path in files.values())
    bar = progress.bar("hashing", total, "B")
    hashes = {name: _sha256(path, bar.advance) for name, path in files.items()}
    told = {**said, "files": hashes}
    what = sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
    if journal.get("what") != what:
        journal.keep(what=what, nonce=secrets.token_hex(16))
    bar = progress.bar("sending", total, "B")
    keys = {name: _upload(client, path, hashes[name], journal, bar.advance) for name, path in files.items()}
    offer = {**said, "nonce": journal.get("nonce")}
    for name, key in keys.items():
        part, _, file = name.partition("/")
        if file:
            offer.setdefault(part, {})[file] = key
        else:
            offer[part] = key
    made = client.offer(offer)
    journal.end()
    return made


def _upload(client: HubClient, path: Path, digest: str, journal: Journal, advance: Advance) -> str:
    uploads: dict[str, str] = dict(journal.get("uploads") or {})

    def began(key: str) -> None:
        journal.keep(uploads={**uploads, digest: key})

    return client.upload(path, uploads.get(digest), began, advance)


def _sha256(path: Path, advance: Advance) -> str:
    found = sha256()
    try:
        with open(path, "rb") as file:
            while piece := file.read(_PIECE):
                found.update(piece)
                advance(len(piece))
    except OSError as error:
        raise HubError("cannot read the file", where=path, got=error.strerror) from None
    return found.hexdigest()


def signed(bundle: Bundle, key: Path, folder: Path) -> str:
    """Sign what is sent with a private key (PEM, elliptic curve); gives what an offer carries.

    Raises:
        HubError: model-signing is not installed, or the key is none.
    """
    try:
        from cryptography.hazmat.primitives import serialization
        from model_signing import signing
    except ImportError as error:
        raise HubError("signing is not installed", got=error, hint='pip install "cofuse[signing]"') from None
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        place = Path(scratch) / "signed"
        place.mkdir()
        for name, path in bundle.files().items():
            if not name.startswith("fisher/"):
                shutil.copyfile(path, place / (PATCH if name == "patch" else name.partition("/")[2]))
        out = Path(scratch) / "model.sig"
        try:
            private = serialization.load_pem_private_key(key.read_bytes(), None)
            signing.Config().use_elliptic_key_signer(private_key=key).sign(place, out)  # type: ignore[no-untyped-call]
        except (OSError, TypeError, ValueError) as error:
            raise HubError(
                "cannot sign", where=key, got=type(error).__name__, expected="an elliptic-curve key (PEM)"
            ) from None
        public = private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return json.dumps({"key": public.decode(), "bundle": out.read_text(encoding="utf-8")})
