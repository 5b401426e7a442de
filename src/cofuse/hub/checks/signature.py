"""Signature: an OpenSSF model signature of what was handed in, by the key that it carries.

The key is whoever's it is: what a signature adds is that the same key signed this account's other contributions, which a
stolen token cannot do. That is looked up where the database is (`work/screening.py`).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

from ...errors import CheckpointError
from ..sending import PATCH
from ..states import Checked
from .case import Case, Found


def look(case: Case) -> Found:
    """Verify it, if there is one."""
    signature = case.payload["signature"]
    if not signature:
        return Found(Checked.SKIP, "not signed")
    try:
        said = json.loads(signature)
        key, bundle = str(said["key"]), said["bundle"]
    except (ValueError, KeyError, TypeError):
        raise CheckpointError("not a signature", where="signature", expected="JSON of key (PEM) and bundle") from None
    if case.source == "commit":
        return Found(Checked.SKIP, "a commit is not signed as files are", {})
    folder = case.place.folder / "signed"
    folder.mkdir()
    for name, path in case.files().items():  # names of letters, digits, dots and dashes: `offering` sees to it
        at = folder / (PATCH if case.source == "patch" else name)
        try:
            os.link(path, at)
        except OSError:
            shutil.copyfile(path, at)  # uploads are on another disk
    try:
        verify(folder, bundle, key, case.place.folder)
    except ImportError:
        return Found(Checked.SKIP, "signed; this worker lacks model-signing, which would verify it")
    shown = fingerprint(key)
    return Found(Checked.PASS, f"good, by key {shown[:16]}", {"key": shown})


def fingerprint(key: str) -> str:
    """A key's SHA-256, whatever its line ends are."""
    return hashlib.sha256("\n".join(key.split()).encode()).hexdigest()


def verify(folder: Path, bundle: object, key: str, scratch: Path) -> None:
    """Verify a folder's signature by a public key.

    Raises:
        CheckpointError: it is not good.
        ImportError: model-signing is not installed.
    """
    from model_signing import verifying

    public, signed = scratch / "key.pem", scratch / "model.sig"
    public.write_text(key)
    signed.write_text(bundle if isinstance(bundle, str) else json.dumps(bundle))
    try:
        verifying.Config().use_elliptic_key_verifier(public_key=public).verify(folder, signed)  # type: ignore[no-untyped-call]
    except Exception as error:  # of many kinds, all of which say that it is not good
        raise CheckpointError("the signature is not good", where="signature", got=_said(error)) from None


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]
