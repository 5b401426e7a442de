"""How a bucket is reached, as the environment says it to AWS's own programs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..store.remotes import Account


def account(endpoint: str | None = None, region: str | None = None) -> Account:
    """How a server is reached, with the keys that the environment has."""
    from ..store.remotes.s3 import Account

    env = os.environ.get
    return Account(
        endpoint=endpoint or env("AWS_ENDPOINT_URL_S3") or env("AWS_ENDPOINT_URL"),
        region=region or env("AWS_REGION") or env("AWS_DEFAULT_REGION"),
        key=env("AWS_ACCESS_KEY_ID"),
        secret=env("AWS_SECRET_ACCESS_KEY"),
        token=env("AWS_SESSION_TOKEN"),
        anonymous=env("AWS_SKIP_SIGNATURE", "").lower() in ("1", "true"),
    )
