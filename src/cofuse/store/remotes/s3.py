"""What is asked of an S3 server, and its answers in our words; never with keys in them."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from ...errors import StoreError

if TYPE_CHECKING:
    from obstore.store import S3Store

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_CODE = re.compile(r"<Code>([A-Za-z0-9]{1,60})</Code>")
_STATUS = re.compile(r"status code: (\d{3}[A-Za-z ]{0,40})")
# Answers: S3's own words where it has one.
_NO_BUCKET, _NO_KEY, _NO_RANGE = "NoSuchBucket", "NoSuchKey", "InvalidRange"
_CONDITION, _NO_ACCESS, _NONE = "condition", "access", ""
_AGAIN = "when it is there again, the same command goes on where it was"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Account:
    """How to reach a server.

    Attributes:
        endpoint: its URL; Amazon's when None.
        region: as the server knows it.
        key, secret, token: who asks; without them, those of the machine (on Amazon's), or nobody's.
        anonymous: ask without keys.
        patience: seconds after which a server that does not answer is given up.
    """

    endpoint: str | None = None
    region: str | None = None
    key: str | None = None
    secret: str | None = None
    token: str | None = None
    anonymous: bool = False
    patience: float = 60.0

    def __repr__(self) -> str:
        return f"Account(endpoint={self.endpoint!r}, region={self.region!r})"


@dataclass(frozen=True, slots=True)
class Got:
    """The bytes that were asked for, and the size of the whole."""

    data: bytes
    size: int


class Bucket:
    """A bucket, or what is below a prefix in it.

    Args:
        name: `s3://bucket/prefix`.
        account: how to reach it.

    Raises:
        StoreError: that is no bucket's name, or obstore is not installed.
    """

    def __init__(self, name: str, account: Account) -> None:
        bucket, _, prefix = name.removeprefix("s3://").partition("/")
        prefix = prefix.strip("/")
        if not _BUCKET.fullmatch(bucket) or any(part in ("", ".", "..") for part in prefix.split("/") if prefix):
            raise StoreError("not a bucket", got=ascii(name[:200]), expected="s3://bucket or s3://bucket/prefix")
        self.name = name
        self._patience = account.patience
        self._client = _client(bucket, prefix, account, retries=20)
        self._impatient = _client(bucket, prefix, account, retries=0)

    def get(self, key: str, start: int, stop: int) -> Got | None:
        """Bytes of a key, fewer where it ends; None where there is no such key."""
        import obstore

        def ask() -> Got:
            found = obstore.get(self._client, key, options={"range": (start, stop)})
            return Got(bytes(found.bytes()), found.meta["size"])

        return self._ask(key, ask, {_NO_KEY: None, _NO_RANGE: Got(b"", 0)})

    def size(self, key: str) -> int | None:
        """Bytes of a key; None where there is no such key."""
        import obstore

        return self._ask(key, lambda: obstore.head(self._client, key)["size"], {_NO_KEY: None})

    def create(self, key: str, data: bytes) -> bool:
        """Put a key where there is none; whether there was none."""
        import obstore

        def ask() -> bool:
            obstore.put(self._client, key, data, mode="create", use_multipart=False)
            return True

        return self._ask(key, ask, {_CONDITION: False})

    def put(self, key: str, data: bytes) -> None:
        """Put a key, also in the place of what is there."""
        import obstore

        self._ask(key, lambda: obstore.put(self._client, key, data, use_multipart=False), {})

    def remove(self, key: str) -> None:
        """Remove a key, there or not."""
        import obstore

        self._ask(key, lambda: obstore.delete(self._client, key), {_NO_KEY: None})

    def refuses_to_replace(self, key: str, data: bytes) -> bool:
        """Whether the server knows If-Match: it must refuse to replace a key whose tag is not the one named."""
        import obstore

        try:
            obstore.put(self._impatient, key, data, mode={"e_tag": '"0"'}, use_multipart=False)
        except Exception as error:  # of obstore's and Python's own kinds
            return _answer(error, str(error)) == _CONDITION
        return False

    def list(self, prefix: str) -> set[str]:
        """Keys below a prefix, which is a whole part of their path; all, if it is empty."""
        import obstore

        def ask() -> set[str]:
            return {entry["path"] for page in obstore.list(self._client, prefix or None) for entry in page}

        return self._ask(prefix, ask, {})

    def some(self) -> set[str]:
        """Some of the keys, if there are any."""
        import obstore

        return self._ask("", lambda: {e["path"] for e in next(iter(obstore.list(self._client)), [])}, {})

    def _ask(self, key: str, ask: Callable[[], T], answers: Mapping[str, T]) -> T:
        """Ask, and ask again where no answer came: whatever is asked may be asked twice.

        Errors are in our words, as obstore's own may quote the request, and with it keys.
        """
        give_up = time.monotonic() + self._patience
        pause = 0.1
        while True:
            try:
                return ask()
            except Exception as error:  # of obstore's and Python's own kinds
                text = str(error)
                answer = _answer(error, text)
                if answer in answers:
                    return answers[answer]
                if answer != _NONE or time.monotonic() + pause > give_up:
                    raise self._in_our_words(answer, text, key) from None
            time.sleep(pause)
            pause = min(2 * pause, 5.0)

    def _in_our_words(self, answer: str, text: str, key: str) -> StoreError:
        where = f"{self.name}: {key}" if key else self.name
        if answer == _NO_BUCKET:
            return StoreError(
                "there is no such bucket", where=self.name, hint="make it first, or check endpoint and region"
            )
        if answer == _NO_ACCESS:
            return StoreError(
                "the server refuses access",
                where=self.name,
                got=_code(text) or "no reason",
                expected="keys that may read, and for a push write, this bucket",
                hint="check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN and the region",
            )
        if answer == _NONE:
            return StoreError("the server cannot be reached", where=self.name, got=_reason(text), hint=_AGAIN)
        return StoreError("the server answers with an error", where=where, got=answer, hint=_AGAIN)


def _answer(error: Exception, text: str) -> str:
    """What the server said, in a word; `_NONE` where nothing was understood."""
    code, kind = _code(text), type(error).__name__
    status = match.group(1).strip() if (match := _STATUS.search(text)) else ""
    if code == _NO_BUCKET:
        return code
    if kind in ("AlreadyExistsError", "PreconditionError"):
        return _CONDITION
    if isinstance(error, FileNotFoundError):
        return _NO_KEY
    if kind in ("PermissionDeniedError", "UnauthenticatedError") or status[:3] in ("401", "403"):
        return _NO_ACCESS
    return code or status or _NONE


def _code(text: str) -> str:
    return match.group(1) if (match := _CODE.search(text)) else ""


def _reason(text: str) -> str:
    """The reason in an error of the network, and nothing else of it."""
    known = ("dns error", "connection refused", "connection reset", "timed out", "certificate", "parsing path")
    return next((reason for reason in known if reason in text.lower()), "no answer")


def _client(bucket: str, prefix: str, account: Account, *, retries: int) -> S3Store:
    try:
        from obstore.store import S3Store
    except ImportError:
        raise StoreError("buckets need obstore", hint="pip install 'cofuse[s3]'") from None
    config: dict[str, Any] = {
        "access_key_id": account.key,
        "secret_access_key": account.secret,
        "session_token": account.token,
        "region": account.region or "us-east-1",
        "endpoint": account.endpoint,
        "skip_signature": account.anonymous or None,
    }
    given: Mapping[str, Any] = {name: value for name, value in config.items() if value is not None}
    patience = timedelta(seconds=account.patience)
    try:
        return S3Store(
            bucket,
            prefix=prefix or None,
            virtual_hosted_style_request=account.endpoint is None,
            client_options={
                "allow_http": (account.endpoint or "").startswith("http://"),
                "connect_timeout": timedelta(seconds=min(10.0, account.patience)),
                "timeout": timedelta(seconds=max(30.0, account.patience)),
            },
            retry_config={
                "max_retries": retries,
                "retry_timeout": patience,
                "backoff": {
                    "init_backoff": timedelta(seconds=0.1),
                    "max_backoff": timedelta(seconds=5),
                    "base": 2,
                },
            },
            **given,
        )
    except Exception as error:
        raise StoreError(
            "not a server", where=f"s3://{bucket}", got=type(error).__name__, expected="an endpoint's URL"
        ) from None
