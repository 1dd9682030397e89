"""Which errors of a storage will pass: it is locked, or away for a while."""

from __future__ import annotations

from typing import Literal

from optuna.exceptions import StorageInternalError
from sqlalchemy import exc

from optuna_robustloss.distributed.passwords import scrub

#: SQLITE_BUSY, _LOCKED and _PROTOCOL; SQLITE_IOERR and _CANTOPEN, as of a network folder.
_SQLITE_BUSY, _SQLITE_AWAY = {5, 6, 15}, {10, 14}
#: Serialisation failure, deadlock, lock not available.
_SQLSTATE_BUSY = ("40001", "40P01", "55P03")
#: Connection failures, lack of resources, shutdown and start-up, a standby during a failover.
_SQLSTATE_AWAY = ("08", "53", "57P", "58", "25006")
#: PostgreSQL refuses a connection without an SQLSTATE; these refusals are for good.
_REFUSED_FOR_GOOD = ("authentication failed", "does not exist", "pg_hba.conf", "permission denied")
#: MySQL: lock wait timeout, deadlock.
_MYSQL_BUSY = {1205, 1213}
#: MySQL: too many connections, shutdown, read-only during a failover, kicked out.
_MYSQL_AWAY = {1040, 1053, 1077, 1079, 1203, 1290, 1792, 1836, 1927, 4031}
#: MySQL: network errors.
_MYSQL_AWAY |= {0, 1042, 1043, 1152, 1158, 1159, 1160, 1161, 1184, 2002, 2003, 2006, 2013, 2055}

#: What a driver says may be long.
_LONG = 400

Passing = Literal["busy", "away"]


def passing(error: BaseException) -> Passing | None:
    """Say whether a storage's error will pass: it is locked, or it cannot be reached."""
    if isinstance(error, StorageInternalError) and error.__cause__ is not None:
        return passing(error.__cause__)
    if isinstance(error, exc.TimeoutError):  # all connections of the pool are in use
        return "busy"
    if isinstance(error, exc.PendingRollbackError):  # after the connection broke
        return "away"
    if not isinstance(error, exc.DBAPIError):
        return None
    return "away" if error.connection_invalidated else _passing_in_driver(error)


def _passing_in_driver(error: exc.DBAPIError) -> Passing | None:
    driver, cause = type(error.orig).__module__.partition(".")[0], error.orig
    operational = isinstance(error, exc.OperationalError)
    if driver == "sqlite3":
        code = getattr(cause, "sqlite_errorcode", 0) & 0xFF
        if code in _SQLITE_BUSY or (operational and "locked" in str(cause)):
            return "busy"
        return "away" if code in _SQLITE_AWAY else None
    state = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
    if isinstance(state, str):
        if state in _SQLSTATE_BUSY:
            return "busy"
        return "away" if state.startswith(_SQLSTATE_AWAY) else None
    code = cause.args[0] if cause is not None and cause.args else None
    if isinstance(code, int):
        if code in _MYSQL_BUSY:
            return "busy"
        return "away" if code in _MYSQL_AWAY else None
    if any(words in str(cause) for words in _REFUSED_FOR_GOOD):
        return None
    return "away" if operational or isinstance(error, exc.InterfaceError) else None


def reason(error: BaseException, storage: str) -> str:
    """Return what the driver says, in one line without the password of ``storage``."""
    while isinstance(error, StorageInternalError) and error.__cause__ is not None:
        error = error.__cause__
    said = str(getattr(error, "orig", None) or _grpc_details(error) or error)
    return scrub(" ".join(said.split()) or type(error).__name__, storage)[:_LONG]


def grpc_passing(error: BaseException) -> Passing | None:
    """Say whether an error of a gRPC call will pass: the server cannot be reached."""
    code = getattr(error, "code", None)
    if callable(code) and getattr(code(), "name", "") == "UNAVAILABLE":
        return "away"
    return None


def _grpc_details(error: BaseException) -> str | None:
    details = getattr(error, "details", None)
    return str(details()) if callable(details) else None
