"""Databases by their URL: SQLite files and servers, opened by several workers at once."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, get_storage
from sqlalchemy import exc
from sqlalchemy.engine import make_url

from optuna_robustloss.distributed.damaged_rows import TolerantRDBStorage
from optuna_robustloss.distributed.files import (
    check_file,
    is_in_memory,
    split_sqlite_url,
    sqlalchemy_url,
)
from optuna_robustloss.distributed.mounts import network_file_system, read_mounts
from optuna_robustloss.distributed.retry import (
    RetryPolicy,
    Transient,
    describe_error,
    transient_kind,
)
from optuna_robustloss.distributed.retrying_storage import RetryingStorage
from optuna_robustloss.distributed.urls import cannot_open, malformed, show_url

#: Seconds a worker waits for another one's write to an SQLite file before the call is retried. Few:
#: no signal is handled meanwhile, and the lock may be this worker's own, of a transaction that
#: Ctrl-C interrupted.
_SQLITE_TIMEOUT = 5
#: Connections that a process keeps, and takes at most: for its worker, its heartbeat, its
#: callbacks, and a second one that Optuna takes for a moment when it opens a database.
_POOL_SIZE, _POOL_OVERFLOW = 2, 2
#: Seconds until a server that does not answer counts as unavailable.
_CONNECT_TIMEOUT, _READ_TIMEOUT = 10, 90
#: Settings of a server's session: seconds until it ends one that is idle in a transaction, or
#: whose host cannot be reached.
_POSTGRESQL_SESSION = (
    "-c idle_in_transaction_session_timeout=30s -c tcp_keepalives_idle=30 "
    "-c tcp_keepalives_interval=10 -c tcp_keepalives_count=3"
)
_MYSQL_SESSION = "SET SESSION wait_timeout = 60"
#: How often workers that make the tables of one new database may collide.
_RACES = 20
#: The extra and the driver for each kind of database.
_EXTRAS = {
    "postgresql": ("postgresql", "postgresql+psycopg"),
    "mysql": ("mysql", "mysql+pymysql"),
    "mariadb": ("mysql", "mysql+pymysql"),
}


def open_database(url: str, *, create: bool, patience: float, wait: bool) -> BaseStorage:
    """Open a database that Optuna and SQLAlchemy know; the arguments are those of ``open_storage``.

    Raises:
        FileNotFoundError: there is no such SQLite file, and ``create`` is off.
        ValueError: the URL is malformed, its driver is missing, or the database cannot be opened.

    """
    shown, kind = url, transient_kind
    parts = split_sqlite_url(url)
    path = None
    if url.startswith("sqlite") and parts is None and not is_in_memory(url):
        raise malformed(url)
    if parts is not None and not is_in_memory(url) and not parts[1].startswith("file:"):
        path = Path(os.path.expanduser(parts[1]))
        check_file(url, path, create=create)
        path = path.absolute()
        shown = f"{parts[0]}{path}{parts[2]}"
        _warn_of_network(path)
        url = sqlalchemy_url(parts[0], str(path), parts[2])
        kind = partial(_kind_of_file, path)
    races = iter(range(_RACES))
    opening = RetryPolicy(
        shown, patience, kind=lambda error: _transient_at_first(error, races, kind, wait)
    )
    try:
        # Optuna fills templates in, and a password may have braces.
        template = url.replace("{", "{{").replace("}", "}}")
        options = _engine_options(url)
        database = opening.call(lambda: TolerantRDBStorage(template, options))
    except (exc.ArgumentError, ValueError):
        raise malformed(shown) from None
    except ImportError as error:
        raise ValueError(_missing_driver(url, error)) from None
    except (exc.SQLAlchemyError, StorageInternalError, RuntimeError, TypeError) as error:
        # RuntimeError: another version of Optuna made the tables; it says what to do.
        raise cannot_open(shown, describe_error(error, url)) from None
    if path is not None:
        sa.event.listen(database.engine, "do_connect", _connect_to_existing)
    return RetryingStorage(get_storage(database), RetryPolicy(shown, patience, kind=kind))


def _connect_to_existing(_dialect: Any, _record: Any, args: list[Any], options: Any) -> None:
    """Let SQLite open the file, but not make a new one where it was deleted."""
    if not options.get("uri"):
        args[0], options["uri"] = f"file:{quote(args[0])}?mode=rw", True


def _kind_of_file(path: Path, error: BaseException) -> Transient | None:
    """Return why an error of an SQLite file is transient; a lost file or permission is not."""
    kind = transient_kind(error)
    usable = os.access(path, os.R_OK | os.W_OK) and os.access(path.parent, os.W_OK | os.X_OK)
    return kind if usable or kind == "locked" else None


def _warn_of_network(path: Path) -> None:
    kind = network_file_system(path.resolve(), read_mounts())
    if kind is not None:
        warnings.warn(
            f"the SQLite file {path} is on a network file system ({kind}), where its locks may not "
            "work and the database may break when several hosts write: use a database server, "
            "journal:FILE or grpc://host:port",
            stacklevel=4,
        )


def _transient_at_first(
    error: BaseException, races: Iterator[int], kind_of: Any, wait: bool
) -> Transient | None:
    """Return what is worth retrying at the start; a wrong host or port is, for workers only."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    if isinstance(cause, exc.IntegrityError) or re.search("already exists|1050", str(cause)):
        # Another worker is making the same tables.
        return "locked" if next(races, None) is not None else None
    kind: Transient | None = kind_of(error)
    restarting = re.search(
        r"starting up|shutting down|recovery|[Tt]oo many|closed the connection|Lost connection",
        str(cause),
    )
    return kind if kind == "locked" or wait or restarting else None


def _engine_options(storage: str) -> dict[str, Any]:
    """Return the pool, time limits and session settings for a database; the URL's own come first.

    A worker that is frozen or cut off in a transaction would hold its locks until somebody notices:
    the server ends such a session, and the worker retries the call if it comes back.
    """
    url = make_url(storage)
    if url.get_backend_name() == "sqlite":
        return {"connect_args": {} if "timeout" in url.query else {"timeout": _SQLITE_TIMEOUT}}
    arguments: dict[str, Any] = {}
    if url.drivername in ("postgresql", "postgresql+psycopg", "postgresql+psycopg2"):
        arguments = {"connect_timeout": _CONNECT_TIMEOUT, "tcp_user_timeout": _READ_TIMEOUT * 1000}
        arguments |= {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
        arguments["options"] = _POSTGRESQL_SESSION
    elif url.drivername in ("mysql+pymysql", "mariadb+pymysql", "mysql+mysqldb"):
        arguments = {"connect_timeout": _CONNECT_TIMEOUT, "read_timeout": _READ_TIMEOUT}
        arguments |= {"write_timeout": _READ_TIMEOUT, "init_command": _MYSQL_SESSION}
    return {
        "pool_pre_ping": True,
        "pool_size": _POOL_SIZE,
        "max_overflow": _POOL_OVERFLOW,
        "connect_args": {k: v for k, v in arguments.items() if k not in url.query},
    }


def _missing_driver(storage: str, error: ImportError) -> str:
    url = make_url(storage)
    missing = getattr(error.__cause__, "name", None)
    text = f"the driver for {show_url(storage)} is not installed"
    if url.get_backend_name() not in _EXTRAS:
        return f"{text}: pip install {missing or 'it'}"
    extra, driver = _EXTRAS[url.get_backend_name()]
    fix = f"pip install 'optuna-robustloss[{extra}]'"
    if url.drivername != driver:
        fix = f"write {driver}://… and {fix}"
    return f"{text} ({missing}): {fix}" if missing else f"{text}: {fix}"
