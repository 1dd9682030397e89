"""What a database server is told of each session, so that no lost worker holds up the others."""

from __future__ import annotations

import functools
from typing import Any

from sqlalchemy import Engine, event

#: What a server must know of a session: a worker that was frozen or cut off in a transaction would
#: keep its locks, and hold up all others, until somebody noticed. After so many seconds the server
#: ends the session; the worker, if it comes back, repeats the call.
_SESSION = {
    "postgresql": (
        "SET idle_in_transaction_session_timeout = '30s'",
        "SET tcp_keepalives_idle = 30",
        "SET tcp_keepalives_interval = 10",
        "SET tcp_keepalives_count = 3",
    ),
    "mysql": ("SET SESSION wait_timeout = 60",),
    "mariadb": ("SET SESSION wait_timeout = 60",),
}


def prepare_sessions(engine: Engine) -> None:
    """Set up each session that ``engine`` begins from now on; nothing to do for SQLite."""
    if engine.name in _SESSION:
        event.listen(engine, "connect", functools.partial(_set_up, engine.name))
        engine.dispose()  # of connections made before


def _set_up(dialect: str, connection: Any, _: Any) -> None:
    """Set up a session; ``connection`` is the driver's."""
    with connection.cursor() as cursor:
        for statement in _SESSION[dialect]:
            cursor.execute(statement)
    connection.commit()
