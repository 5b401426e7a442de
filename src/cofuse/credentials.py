"""What this machine knows of hubs: its tokens for them, one a hub, in a file that only its user can read."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from .errors import HubError


class Credentials:
    """Tokens by hub.

    Args:
        path: the file; it need not be there.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     known = Credentials(Path(folder) / "credentials")
    ...     known.set("https://hub.example.org", "cofuse_x")
    ...     known.get("https://hub.example.org:443/"), known.get("https://elsewhere.example.org")
    ('cofuse_x', None)
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def get(self, hub: str) -> str | None:
        """The token for a hub."""
        return self._all().get(_origin(hub))

    def set(self, hub: str, token: str) -> None:
        """Keep a token, in the place of the one that was there."""
        self._write({**self._all(), _origin(hub): token})

    def remove(self, hub: str) -> bool:
        """Forget the token for a hub; whether there was one."""
        known = self._all()
        there = known.pop(_origin(hub), None) is not None
        if there:
            self._write(known)
        return there

    def _all(self) -> dict[str, str]:
        try:
            known = json.loads(self.path.read_bytes())
            return {str(hub): str(token) for hub, token in known.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, AttributeError, RecursionError) as error:
            said = error.strerror if isinstance(error, OSError) else "it is not what cofuse login writes"
            raise HubError(
                "cannot read the tokens", where=self.path, got=said, hint="remove it; cofuse login"
            ) from None

    def _write(self, tokens: dict[str, str]) -> None:
        partial = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(fd, "w") as file:
                file.write(json.dumps(tokens, indent=1, sort_keys=True) + "\n")
                file.flush()
                os.fsync(fd)
            os.replace(partial, self.path)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise HubError("cannot keep the token", where=self.path, got=error.strerror) from None


@dataclass(frozen=True, slots=True)
class Machine:
    """How this machine reaches hubs.

    Attributes:
        credentials: the file of tokens.
        cache: the folder where versions of hubs are kept once fetched.
        token: one that goes before those of the file.
        plain: whether http:// may be spoken with other machines than this one.
    """

    credentials: Path = field(default_factory=lambda: Path.home() / ".config" / "cofuse" / "credentials")
    cache: Path = field(default_factory=lambda: Path.home() / ".cache" / "cofuse")
    token: str | None = field(default=None, repr=False)
    plain: bool = False

    def token_for(self, hub: str) -> str | None:
        """The token to show a hub; None where there is none."""
        return self.token or Credentials(self.credentials).get(hub)


class _Current:
    """The machine as this process has been told; the command line tells what the environment says."""

    machine: Machine | None = None


def machine() -> Machine:
    """How this machine reaches hubs."""
    return _Current.machine or Machine()


def use(said: Machine) -> None:
    """Say so, for this process."""
    _Current.machine = said


def _origin(hub: str) -> str:
    parts = urlsplit(hub)
    port = parts.port or {"https": 443, "http": 80}.get(parts.scheme)
    return f"{parts.scheme}://{(parts.hostname or '').lower()}:{port}"
