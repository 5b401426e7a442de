"""Who asks: found from a token or a session, and remembered for a moment."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass

from sqlalchemy import select

from ..database import Database, Session, Token
from ..faults import Denied, Unauthenticated
from .roles import Role
from .tokens import digest, good

REMEMBERED = 0.5  # seconds: another process may have revoked it meanwhile
_MOST = 10_000


@dataclass(frozen=True, slots=True)
class Visitor:
    """An account as a request has it: never more than its token's scope.

    Attributes:
        account: its id; None for nobody.
        name: its name.
        scope: the token's.
        role: the account's on the whole hub, at most the scope.
        token: the token's id.
        csrf: what forms of the session carry; None where the request brought a token itself.
    """

    account: int | None = None
    name: str = ""
    scope: Role = Role.READ
    role: Role = Role.NONE
    token: int | None = None
    csrf: str | None = None

    def known(self) -> int:
        """The account's id.

        Raises:
            Unauthenticated: nobody has said who they are.
        """
        if self.account is None:
            raise Unauthenticated("a token is needed", hint="cofuse login URL; or send: Authorization: Bearer TOKEN")
        return self.account

    def must(self, role: Role) -> None:
        """Refuse who has less than a role on the whole hub.

        Raises:
            Unauthenticated, Denied: it has.
        """
        self.known()
        if self.role < role:
            raise Denied("not allowed", got=f"{self.name}: {self.role.word}", expected=f"{role.word}, on the whole hub")


NOBODY = Visitor()


class Visitors:
    """Visitors by their secrets; an answer is half a second old at most, and never outlives a revocation made here."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._seen: OrderedDict[str, tuple[float, Visitor | None]] = OrderedDict()
        self._guard = threading.Lock()
        self._forgotten = 0

    def remembered(self, secret: str) -> tuple[bool, Visitor | None]:
        """Whether it is known without asking the database, and what."""
        found = self._seen.get(digest(secret))
        if found is None or found[0] < time.monotonic():
            return False, None
        return True, found[1]

    def token(self, secret: str) -> Visitor | None:
        """Whose a token is; None for a wrong one."""
        return self._look(digest(secret), session=False)

    def session(self, secret: str) -> Visitor | None:
        """Whose a session of the web page is; None for a wrong one."""
        return self._look(digest(secret), session=True)

    def forget(self) -> None:
        """Ask anew for everybody: something was revoked."""
        with self._guard:
            self._forgotten += 1
            self._seen.clear()

    def _look(self, hashed: str, *, session: bool) -> Visitor | None:
        began = self._forgotten
        now = time.time()
        with self._database.reading() as look:
            csrf = None
            if session:
                found = look.get(Session, hashed)
                token = found.token if found is not None and found.expires > now else None
                csrf = found.csrf if found is not None else None
            else:
                token = look.scalar(select(Token).where(Token.hash == hashed))
            visitor = None
            if token is not None and good(token, now):
                scope = Role.of(token.scope)
                role = min(scope, Role.of(token.account.role))
                visitor = Visitor(token.account_id, token.account.name, scope, role, token.id, csrf)
        with self._guard:
            if began == self._forgotten:
                self._seen[hashed] = time.monotonic() + REMEMBERED, visitor
                while len(self._seen) > _MOST:
                    self._seen.popitem(last=False)
        return visitor
