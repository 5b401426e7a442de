"""All pages; those with words of their own before those whose paths begin with a name."""

from __future__ import annotations

from fastapi import APIRouter

from . import admin, assets, contributions, files, leaderboard, models, people, rounds, settings, signin

router = APIRouter(include_in_schema=False)
for part in (
    assets.router,
    signin.router,
    models.home,
    leaderboard.router,
    admin.router,
    people.router,
    files.router,
    contributions.router,
    rounds.router,
    settings.router,
    models.router,
):
    router.include_router(part)
