"""The routes of this room, in the order that they are tried."""

from . import downloads, lfs, managing, pulls, reading, writing, xet

ROUTERS = (reading.router, writing.router, managing.router, pulls.router, lfs.router, xet.router, downloads.router)
