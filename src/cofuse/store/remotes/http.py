"""Asking a hub: connections that are kept, patience where a network or a hub is away, its errors in our words.

Safe to be used by many threads. A token is sent in a header, to the hub's own origin and encrypted, and is in no URL, error
or `repr`.
"""

from __future__ import annotations

import contextlib
import json
import random
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

import urllib3
from urllib3.exceptions import HTTPError, NewConnectionError, SSLError

from ..._version import __version__
from ...errors import HubError

Body = bytes | Callable[[], Iterable[bytes]]  # a body that may be sent again is made anew each time

AGAIN = frozenset({429, 502, 503, 504})  # nothing has been done, or it does no harm twice; the hub may be back soon
PATIENCE = 60.0  # seconds
LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})
_CONNECTIONS = 64
_LONGEST = 64 * 1024 * 1024  # bytes of an answer that is read whole
_PAUSES = 0.1, 5.0  # seconds: the first and the longest
_GOES_ON = "when it is there again, the same command goes on where it was"


class Answered(HubError):  # noqa: N818 - what has happened
    """A hub's answer that it does not do as asked; `status` is HTTP's."""

    def __init__(self, what: str, *, status: int = 0, **rest: Any) -> None:
        super().__init__(what, **rest)
        self.status = status

    def __reduce__(self) -> tuple[object, ...]:
        rest = {"where": self.where, "got": self.got, "expected": self.expected, "hint": self.hint}
        return (_answered, (self.what, self.status, rest))


def _answered(what: str, status: int, rest: dict[str, Any]) -> Answered:
    return Answered(what, status=status, **rest)


class Unreachable(HubError):  # noqa: N818
    """A hub does not answer, or not for long enough."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a hub has answered."""

    status: int
    headers: Mapping[str, str]
    data: bytes

    def json(self) -> Any:
        """The body as JSON.

        Raises:
            HubError: it is not.
        """
        try:
            return json.loads(self.data)
        except (ValueError, RecursionError):
            raise HubError("the answer is not JSON", got=ascii(self.data[:60]), hint="is this a Cofuse hub?") from None


class Http:
    """A hub, and who asks.

    Args:
        url: `https://host[:port][/prefix]`.
        token: its secret; nobody's when None.
        patience: seconds after which a hub that does not answer is given up.
        plain: whether http:// may be spoken with other machines than this one.

    Raises:
        HubError: not such a URL, or one that would not be encrypted.
    """

    def __init__(self, url: str, token: str | None = None, *, patience: float = PATIENCE, plain: bool = False) -> None:
        self.url = check_url(url, plain=plain)
        self._headers = {"User-Agent": f"cofuse/{__version__}", "Accept": "application/json"}
        if token is not None:
            if not token.isascii() or not token.isprintable() or " " in token:
                raise HubError("not a token", expected="what `cofuse token create` or a hub's page has shown")
            self._headers["Authorization"] = f"Bearer {token}"
        self.known = token is not None
        self._patience = patience
        verified = {"cert_reqs": "CERT_REQUIRED"} if self.url.startswith("https:") else {}
        self._pool = urllib3.connection_from_url(
            self.url,
            maxsize=_CONNECTIONS,
            retries=False,
            timeout=urllib3.Timeout(connect=min(10.0, patience), read=max(30.0, patience)),
            **verified,
        )
        self._prefix = urlsplit(self.url).path

    def __repr__(self) -> str:
        return f"Http({self.url!r})"

    def close(self) -> None:
        """Close its connections."""
        self._pool.close()

    def ask(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, object] | None = None,
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
        value: Any = None,
        again: bool | None = None,
    ) -> Answer:
        """Ask, and ask again where no answer came, or one that says so.

        Args:
            method: GET, HEAD, PUT, ...
            path: below the hub's URL; its parts are quoted already.
            query: of the URL; never secrets.
            headers: more of them.
            body: to be sent.
            value: to be sent as JSON, instead.
            again: whether it does no harm twice; that is so of all but POST and PATCH when None. What has not reached the
                hub is asked again in any case.

        Raises:
            Answered: the hub does not do it.
            Unreachable: it cannot be reached.
        """
        with self.streaming(
            method, path, query=query, headers=headers, body=body, value=value, again=again, whole=True
        ) as (answer, _):
            return answer

    def json(self, method: str, path: str, **more: Any) -> Any:
        """The same; the answer's JSON."""
        return self.ask(method, path, **more).json()

    @contextlib.contextmanager
    def streaming(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, object] | None = None,
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
        value: Any = None,
        again: bool | None = None,
        whole: bool = False,
    ) -> Iterator[tuple[Answer, Callable[[int], bytes]]]:
        """Ask as `ask` does; the answer without its body, and a function that reads so many bytes of it (fewer at its end).

        Reading raises Unreachable where the connection ends early.
        """
        sent = {**self._headers, **(headers or {})}
        if value is not None:
            body = json.dumps(value, allow_nan=False).encode()
            sent["Content-Type"] = "application/json"
        url = self._prefix + path + ("?" + urlencode(query) if query else "")
        harmless = method not in ("POST", "PATCH") if again is None else again
        give_up, pause = time.monotonic() + self._patience, _PAUSES[0]
        while True:
            wait: float | None = None
            response = None
            try:
                response = self._pool.request(
                    method,
                    url,
                    headers=sent,
                    body=body() if callable(body) else body,
                    redirect=False,
                    preload_content=False,
                    decode_content=False,
                )
                answer, failed = self._read(response, whole), None
            except (HTTPError, OSError) as error:
                failed = self._lost(error)
                if not (harmless or isinstance(error, NewConnectionError)) or _certificate(error):
                    raise failed from None
            else:
                if answer.status < 300:
                    break
                if answer.status not in AGAIN:
                    raise self._refused(answer, path)
                failed, wait = self._refused(answer, path), _seconds(answer.headers.get("retry-after"))
            finally:
                if response is not None and (failed is not None or whole):
                    response.release_conn()
            pause = pause if wait is None else max(pause, wait)
            if time.monotonic() + pause > give_up:
                raise failed from None
            time.sleep(pause * (1 + random.random() / 4))  # so that many do not come back at once
            pause = min(2 * pause, _PAUSES[1])

        def read(size: int) -> bytes:
            try:
                return bytes(response.read(size))
            except (HTTPError, OSError) as error:
                raise self._lost(error) from None

        try:
            yield answer, read
        except BaseException:
            response.close()  # what is left of it will not be read
            raise
        finally:
            response.release_conn()

    def _read(self, response: urllib3.BaseHTTPResponse, whole: bool) -> Answer:
        headers = {name.lower(): value for name, value in response.headers.items()}
        if not whole and response.status < 300:
            return Answer(response.status, headers, b"")
        data = response.read(_LONGEST + 1)
        if len(data) > _LONGEST:
            response.close()
            raise HubError("the answer is too long", where=self.url, expected=f"at most {_LONGEST} bytes")
        return Answer(response.status, headers, data)

    def _refused(self, answer: Answer, path: str) -> HubError:
        """A hub's error in our words; what stands between (a proxy) has words of its own, which are not repeated."""
        if 300 <= answer.status < 400:
            elsewhere = urlsplit(answer.headers.get("location", "")).netloc
            return Answered(
                "the hub answers from elsewhere", status=answer.status, where=self.url, got=_shown(elsewhere)
            )
        try:
            said = json.loads(answer.data)
            told = {key: _shown(said[key]) for key in ("where", "got", "expected", "hint") if key in said}
            what = _shown(said["error"])
        except (ValueError, KeyError, TypeError, RecursionError):
            told, what = (
                {"got": f"status {answer.status}", "hint": "is this a Cofuse hub?"},
                "the hub answers with an error",
            )
        if answer.status == 401 and not self.known:
            told["hint"] = f"say who you are: cofuse login {self.url}"
        told.setdefault("where", self.url)
        return Answered(what, status=answer.status, **told)

    def _lost(self, error: Exception) -> HubError:
        if _certificate(error):
            return Unreachable(
                "the hub's certificate is not good",
                where=self.url,
                got=_reason(error),
                hint="its operator has to renew it; for an authority of your own, set SSL_CERT_FILE",
            )
        return Unreachable("the hub cannot be reached", where=self.url, got=_reason(error), hint=_GOES_ON)


def check_url(url: str, *, plain: bool = False) -> str:
    """The URL of a hub, without a slash at its end.

    Raises:
        HubError: it is none, has a name or a key in it, or would not be encrypted.

    >>> check_url("https://hub.example.org/")
    'https://hub.example.org'
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host, parts = None, urlsplit("")
    if "@" in parts.netloc:
        raise HubError("there is a name or a key in the address", hint="say who you are: cofuse login URL")
    if parts.scheme not in ("https", "http") or not host or not url.isprintable() or parts.query or parts.fragment:
        raise HubError("not a hub", got=ascii(url[:200]), expected="https://host")
    if parts.scheme == "http" and host not in LOCAL and not plain:
        raise HubError(
            "the connection would not be encrypted, and the token could be read by others",
            got=f"http://{parts.netloc}",
            expected=f"https://{parts.netloc}",
            hint="in a network that is trusted: COFUSE_HUB_PLAIN=1",
        )
    return url.rstrip("/")


def _certificate(error: BaseException) -> bool:
    return isinstance(error, SSLError) and any(
        isinstance(e, ssl.SSLCertVerificationError) for e in (error, *error.args, error.__cause__)
    )


def _reason(error: Exception) -> str:
    """The kind of an error of the network; its text may quote the request."""
    text = str(error).lower()
    known = ("name resolution", "connection refused", "connection reset", "timed out", "self-signed", "expired")
    return next((reason for reason in known if reason in text), type(error).__name__)


def _seconds(text: str | None) -> float | None:
    return float(text) if text is not None and text.isascii() and text.isdigit() else None


def _shown(value: object) -> str:
    """What another machine has said, fit for a terminal."""
    return "".join(c if c.isprintable() else "?" for c in str(value))[:500]
