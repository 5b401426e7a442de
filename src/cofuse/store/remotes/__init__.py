"""Other stores, in a folder or a bucket: cloning, pushing, fetching."""

from .moving import Moved, Push, clone, deliver, fetch, pull, push, receive
from .opening import open_remote
from .remote import Delivery, Remote
from .s3 import Account
from .settings import DEFAULT, Named, Settings

__all__ = [
    "DEFAULT",
    "Account",
    "Delivery",
    "Moved",
    "Named",
    "Push",
    "Remote",
    "Settings",
    "clone",
    "deliver",
    "fetch",
    "open_remote",
    "pull",
    "push",
    "receive",
]
