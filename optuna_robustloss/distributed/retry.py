"""Which errors of a storage are transient, and how calls are retried until they are over."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import tenacity
from optuna.exceptions import StorageInternalError
from sqlalchemy import exc

from optuna_robustloss.distributed.urls import mask_password_in, show_url

_logger = logging.getLogger(__name__)

T = TypeVar("T")
Transient = Literal["locked", "unavailable"]

#: SQLITE_BUSY, _LOCKED and _PROTOCOL; SQLITE_IOERR and _CANTOPEN, as of a network folder.
_SQLITE_LOCKED, _SQLITE_UNAVAILABLE = {5, 6, 15}, {10, 14}
#: Serialisation failure, deadlock, lock not available.
_SQLSTATE_LOCKED = ("40001", "40P01", "55P03")
#: Connection failures, lack of resources, shutdown and start-up, a standby during a failover.
_SQLSTATE_UNAVAILABLE = ("08", "53", "57P", "58", "25006")
#: PostgreSQL refuses a connection without an SQLSTATE; these refusals are permanent.
_PERMANENT = (
    *("authentication failed", "does not exist", "pg_hba.conf", "permission denied"),
    *("invalid port", "no password supplied"),
)
#: MySQL: lock wait timeout, deadlock.
_MYSQL_LOCKED = {1205, 1213}
#: MySQL: too many connections, shutdown, read-only during a failover, kicked out; network errors.
_MYSQL_UNAVAILABLE = {1040, 1053, 1077, 1079, 1203, 1290, 1792, 1836, 1927, 4031}
_MYSQL_UNAVAILABLE |= {0, 1042, 1043, 1152, 1158, 1159, 1160, 1161, 1184, 2002, 2003, 2006}
_MYSQL_UNAVAILABLE |= {2013, 2055}

#: What to do about an error that a driver names by these words.
_FIXES = {
    r"authentication failed|Access denied": "check user and password",
    r"does not exist|Unknown database": "create it first, or check the name",
    r"failed to resolve|Name or service": "check the name of the host",
    r"refused|invalid port": "check host and port, and whether the server runs",
    r"disk is full|No space left": "free some space, and start the same command again",
    r"readonly database|read-only": "make the file and its folder writable; it may also have been "
    "deleted or replaced while it was in use",
    r"no such table": "the file was replaced, or its tables were dropped: restore a copy",
    r"not a database|malformed": "the file is damaged, or none of SQLite: restore a copy, or try "
    "sqlite3 FILE .recover",
    r"unable to open": "the file was deleted or moved, or permission to it or its folder is denied",
}
#: Characters of a driver's message that are shown.
_LONGEST_MESSAGE = 400
#: Lock conflicts between workers are frequent: they are logged when they last so many seconds.
_LOG_LOCKS_AFTER = 5.0
#: Held while an outage begins or ends, so that threads log it once.
_outage_lock = threading.Lock()


def transient_kind(error: BaseException) -> Transient | None:
    """Return why a storage call that failed may succeed later, or None if it will not."""
    if isinstance(error, StorageInternalError) and error.__cause__ is not None:
        return transient_kind(error.__cause__)
    if isinstance(error, exc.TimeoutError):  # all connections of the pool are in use
        return "locked"
    if isinstance(error, exc.PendingRollbackError):  # after the connection broke
        return "unavailable"
    if isinstance(error, exc.DBAPIError):
        return "unavailable" if error.connection_invalidated else _driver_kind(error)
    code = getattr(error, "code", None)  # of a gRPC call
    if callable(code) and getattr(code(), "name", "") == "UNAVAILABLE":
        return "unavailable"
    return None


def _driver_kind(error: exc.DBAPIError) -> Transient | None:
    driver, cause = type(error.orig).__module__.partition(".")[0], error.orig
    operational = isinstance(error, exc.OperationalError)
    if driver == "sqlite3":
        code = getattr(cause, "sqlite_errorcode", 0) & 0xFF
        if code in _SQLITE_LOCKED or (operational and "locked" in str(cause)):
            return "locked"
        return "unavailable" if code in _SQLITE_UNAVAILABLE else None
    state = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
    if isinstance(state, str):
        if state in _SQLSTATE_LOCKED:
            return "locked"
        return "unavailable" if state.startswith(_SQLSTATE_UNAVAILABLE) else None
    code = cause.args[0] if cause is not None and cause.args else None
    if isinstance(code, int):
        if code in _MYSQL_LOCKED:
            return "locked"
        return "unavailable" if code in _MYSQL_UNAVAILABLE else None
    if any(words in str(cause) for words in _PERMANENT):
        return None
    return "unavailable" if operational or isinstance(error, exc.InterfaceError) else None


def describe_error(error: BaseException, url: str) -> str:
    """Return a driver's message and a fix in one line, without the password of ``url``."""
    while isinstance(error, StorageInternalError) and error.__cause__ is not None:
        error = error.__cause__
    details = getattr(error, "details", None)  # of a gRPC call
    message = str(getattr(error, "orig", None) or (details() if callable(details) else error))
    one_line = " ".join(message.split()) or type(error).__name__
    shown = mask_password_in(one_line, url)[:_LONGEST_MESSAGE]
    fix = next((fix for words, fix in _FIXES.items() if re.search(words, shown)), None)
    return f"{shown} ({fix})" if fix and fix not in shown else shown


def failed_call(error: Exception, url: str) -> Exception:
    """Return an error with the driver's own reason, in place of Optuna's and the driver's.

    Optuna's speaks of invalid data whatever the reason is. Other errors are returned as they are.
    """
    of_optuna = isinstance(error, StorageInternalError) and error.__cause__ is not None
    of_grpc = callable(getattr(error, "code", None)) and callable(getattr(error, "details", None))
    if not (of_optuna or of_grpc or isinstance(error, exc.SQLAlchemyError)):
        return error
    return StorageInternalError(f"the storage {show_url(url)} failed: {describe_error(error, url)}")


@dataclass
class RetryPolicy:
    """Retries a call while its storage is locked or unavailable, and logs each outage once.

    Args:
        url: of the storage; messages show it without its password.
        seconds: until a call fails, over all of its attempts.
        first_pause: seconds before the second attempt; pauses grow exponentially, with jitter.
        longest_pause: seconds.
        kind: why an error is transient, or None.

    """

    url: str = field(repr=False)
    seconds: float = 300.0
    first_pause: float = 0.1
    longest_pause: float = 10.0
    kind: Callable[[BaseException], Transient | None] = transient_kind
    _unavailable_since: float | None = field(default=None, init=False, repr=False)

    def call(
        self, function: Callable[[], T], recover: Callable[[Transient], None] | None = None
    ) -> T:
        """Call ``function`` until it succeeds or fails permanently.

        Args:
            function: may be called any number of times.
            recover: prepares the next attempt.

        Raises:
            StorageInternalError: the storage was locked or unavailable for ``seconds``.

        """

        def before_pause(state: tenacity.RetryCallState) -> None:
            error = state.outcome.exception() if state.outcome else None
            kind = self.kind(error) if error else None
            if error is None or kind is None:
                return
            if recover is not None:
                recover(kind)
            waited = state.seconds_since_start or 0.0
            if kind == "unavailable" or waited > _LOG_LOCKS_AFTER:
                self._log_outage(waited, describe_error(error, self.url))

        def raise_error(state: tenacity.RetryCallState) -> T:
            before_pause(state)
            error = state.outcome.exception() if state.outcome else None
            raise StorageInternalError(
                f"the storage {show_url(self.url)} did not answer for "
                f"{state.seconds_since_start or 0:.0f} s: "
                f"{describe_error(error, self.url) if error else ''}"
            ) from None

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(lambda error: self.kind(error) is not None),
            wait=tenacity.wait_random_exponential(self.first_pause, self.longest_pause),
            stop=tenacity.stop_after_delay(self.seconds),
            before_sleep=before_pause,
            retry_error_callback=raise_error,
        )
        result = retrying(function)
        self._log_return()
        return result

    def _log_outage(self, waited: float, message: str) -> None:
        with _outage_lock:
            if self._unavailable_since is not None:
                return
            self._unavailable_since = time.monotonic() - waited
        _logger.warning(
            "the storage %s does not answer; retrying for up to %.0f s: %s",
            show_url(self.url),
            self.seconds,
            message,
        )

    def _log_return(self) -> None:
        if self._unavailable_since is None:  # the usual case takes no lock
            return
        with _outage_lock:
            since, self._unavailable_since = self._unavailable_since, None
        if since is not None:
            away = time.monotonic() - since
            _logger.info("the storage %s is back after %.1f s", show_url(self.url), away)
