"""SHA-256 that can be put down and taken up again, in another process too.

`hashlib` cannot write down where it is, so OpenSSL's own functions are called, whose state is 112 bytes. Where they are not to
be had, `Sha256.state` is None, and whoever comes back reads again what there is.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import hashlib
from functools import cache
from typing import Any

_STATE = 112  # bytes of SHA256_CTX: the same since OpenSSL 0.9.8, on every platform with 32-bit ints
_TWO = b"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


class Sha256:
    """A running SHA-256.

    Args:
        state: where another one was; the beginning when empty.

    >>> first = Sha256()
    >>> first.update(b"a")
    >>> second = Sha256(first.state or b"")
    >>> second.update(b"bc") if first.state else second.update(b"abc")
    >>> second.hexdigest()[:8]
    'ba7816bf'
    """

    def __init__(self, state: bytes = b"") -> None:
        self._library = _openssl()
        if self._library is None:
            self._plain = hashlib.sha256()
            return
        self._context = ctypes.create_string_buffer(state, _STATE)
        if not state:
            self._library.SHA256_Init(self._context)

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Take more bytes; other threads run meanwhile."""
        if self._library is None:
            self._plain.update(data)
        else:
            self._library.SHA256_Update(self._context, bytes(data), len(data))

    @property
    def state(self) -> bytes | None:
        """Where it is; None where that cannot be said."""
        return None if self._library is None else self._context.raw

    def hexdigest(self) -> str:
        """The digest of what came so far; more may come."""
        if self._library is None:
            return self._plain.hexdigest()
        copy, out = ctypes.create_string_buffer(self._context.raw, _STATE), ctypes.create_string_buffer(32)
        self._library.SHA256_Final(out, copy)
        return out.raw.hex()


@cache
def _openssl() -> Any:
    """OpenSSL's library, if it does as it should."""
    name = ctypes.util.find_library("crypto")
    if name is None:
        return None
    try:
        library = ctypes.CDLL(name)
        library.SHA256_Update.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]
        context, out = ctypes.create_string_buffer(2 * _STATE), ctypes.create_string_buffer(32)
        library.SHA256_Init(context)
        library.SHA256_Update(context, _TWO[0], len(_TWO[0]))
        library.SHA256_Final(out, context)
    except (OSError, AttributeError):
        return None
    return library if out.raw.hex() == _TWO[1] and not any(context.raw[_STATE:]) else None
