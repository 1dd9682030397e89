"""Storages by their URL: a file, a database server, a journal, or a gRPC proxy."""

from __future__ import annotations

import importlib
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import (
    BaseStorage,
    GrpcStorageProxy,
    JournalStorage,
    RDBStorage,
    get_storage,
)
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock, JournalRedisBackend
from optuna.study import Study
from sqlalchemy import exc
from sqlalchemy.engine import make_url

from optuna_robustloss.distributed.mounts import network_file_system, read_mounts
from optuna_robustloss.distributed.retry import (
    RetryPolicy,
    Transient,
    describe_error,
    transient_kind,
)
from optuna_robustloss.distributed.retrying_storage import RetryingStorage
from optuna_robustloss.distributed.urls import mask_password, mask_password_in

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
#: whose host is gone.
_POSTGRESQL_SESSION = (
    "-c idle_in_transaction_session_timeout=30s -c tcp_keepalives_idle=30 "
    "-c tcp_keepalives_interval=10 -c tcp_keepalives_count=3"
)
_MYSQL_SESSION = "SET SESSION wait_timeout = 60"
#: Seconds until a gRPC server must have answered once.
_GRPC_TIMEOUT = 10.0
_GRPC_PORT = 13000
#: How often workers that make the tables of one new database may collide.
_RACES = 20
_FORMS = (
    "sqlite:///search.db, postgresql+psycopg://user:password@host/database, "
    "mysql+pymysql://user:password@host/database, journal:search.log or grpc://host:port"
)
#: The extra and the driver for each kind of database.
_EXTRAS = {
    "postgresql": ("postgresql", "postgresql+psycopg"),
    "mysql": ("mysql", "mysql+pymysql"),
    "mariadb": ("mysql", "mysql+pymysql"),
}


def open_storage(url: str, *, create: bool = False, patience: float = 300.0) -> BaseStorage:
    """Open an Optuna storage by its URL: a database, a journal, or a gRPC proxy.

    A process takes two connections to a database server, for its worker and its heartbeat, and at
    most four. Optuna's own heartbeat stays off: leases tell which workers are alive.

    >>> storage = open_storage("sqlite:///:memory:")
    >>> import optuna
    >>> optuna.create_study(storage=storage, study_name="s").study_name
    's'

    Args:
        url: ``sqlite:///FILE``, ``postgresql+psycopg://…``, ``mysql+pymysql://…`` or another
            database that SQLAlchemy knows; ``journal:FILE`` (``journal:///absolute/FILE``) or the
            path of an existing journal, for a folder that hosts share; ``redis://…``;
            ``grpc://host:port``.
        create: make an SQLite file or a journal that is not there yet.
        patience: seconds for which each call is retried while a database or gRPC server is
            locked or unavailable.

    Raises:
        FileNotFoundError: there is no such file, and ``create`` is off.
        ValueError: the URL is malformed, its driver is missing, or the database does not answer.

    """
    scheme = url.partition(":")[0]
    if scheme == "grpc":
        return _open_grpc(url, patience)
    if scheme in ("redis", "rediss"):
        return _open_redis(url)
    if scheme == "journal":
        return _open_journal(_journal_path(url), create)
    if "://" not in url and Path(url).is_file():
        return _open_journal(Path(url), create)
    if url.startswith("sqlite:///"):
        _check_sqlite(url, create)
    return _open_database(url, patience)


def load_study(storage: str | BaseStorage, study_name: str) -> Study:
    """Open a study by its name.

    Raises:
        ValueError: the storage has no such study; lists those it has.

    """
    try:
        return optuna.load_study(study_name=study_name, storage=storage)
    except KeyError:
        names = ", ".join(optuna.get_all_study_names(storage)) or "none yet"
        raise ValueError(
            f"there is no study {study_name!r} in the storage; it has: {names}"
        ) from None


def _check_sqlite(storage: str, create: bool) -> None:
    path = storage.removeprefix("sqlite:///").partition("?")[0]
    if not path or path == ":memory:":
        return
    if not create and not Path(path).is_file():
        raise _no_file("database", path)
    kind = network_file_system(Path(path).resolve(), read_mounts())
    if kind is not None:
        warnings.warn(
            f"the SQLite file {path} is on a network file system ({kind}), where its locks may not "
            "work and the database may break when several hosts write: use a database server, "
            "journal:FILE or grpc://host:port",
            stacklevel=3,
        )


def _no_file(kind: str, path: str | Path) -> FileNotFoundError:
    return FileNotFoundError(
        f"there is no {kind} {path}: check the name and the current folder, or create a study first"
    )


def _open_database(url: str, patience: float) -> BaseStorage:
    races = iter(range(_RACES))
    opening = RetryPolicy(url, patience, kind=lambda error: _transient_at_first(error, races))
    try:
        # Optuna fills templates in, and a password may have braces.
        template = url.replace("{", "{{").replace("}", "}}")
        options = _engine_options(url)
        database = opening.call(lambda: RDBStorage(template, options))
    except (exc.ArgumentError, ValueError):
        raise ValueError(
            f"{mask_password(url)!r} is not a storage URL: use for example {_FORMS}"
        ) from None
    except ImportError as error:
        raise ValueError(_missing_driver(url, error)) from None
    except (exc.SQLAlchemyError, StorageInternalError, RuntimeError, TypeError) as error:
        # RuntimeError: another version of Optuna made the tables; it says what to do.
        raise _cannot_open(url, describe_error(error, url)) from None
    return RetryingStorage(get_storage(database), RetryPolicy(url, patience))


def _transient_at_first(error: BaseException, races: Iterator[int]) -> Transient | None:
    """Return what is worth retrying at the start; a wrong host or port is not."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    if isinstance(cause, exc.IntegrityError) or re.search("already exists|1050", str(cause)):
        # Another worker is making the same tables.
        return "locked" if next(races, None) is not None else None
    kind = transient_kind(error)
    restarting = re.search(
        r"starting up|shutting down|recovery|[Tt]oo many|closed the connection|Lost connection",
        str(cause),
    )
    return kind if kind == "locked" or restarting else None


def _engine_options(storage: str) -> dict[str, Any]:
    """Return the pool, time limits and session settings for a database; the URL's own come first.

    A worker that is frozen or cut off in a transaction would hold its locks until somebody notices:
    the server ends such a session, and the worker retries the call if it comes back.
    """
    url = make_url(storage)
    if url.get_backend_name() == "sqlite":
        return {"connect_args": {"timeout": _SQLITE_TIMEOUT}}
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
    text = f"the driver for {mask_password(storage)!r} is not installed"
    if url.get_backend_name() not in _EXTRAS:
        return f"{text}: pip install {missing or 'it'}"
    extra, driver = _EXTRAS[url.get_backend_name()]
    fix = f"pip install 'optuna-robustloss[{extra}]'"
    if url.drivername != driver:
        fix = f"write {driver}://… and {fix}"
    return f"{text} ({missing}): {fix}" if missing else f"{text}: {fix}"


def _cannot_open(storage: str, why: str) -> ValueError:
    shown = mask_password_in(why, storage)
    return ValueError(f"cannot open the storage {mask_password(storage)!r}: {shown}")


def _journal_path(storage: str) -> Path:
    path = storage.removeprefix("journal:")
    if path.startswith("//"):
        path = path.removeprefix("//")
        if not path.startswith("/"):
            path = ""
    if not path:
        raise ValueError(
            f"{storage!r} is not a journal: write journal:search.log for a file in the current "
            "folder, or journal:///folder/search.log"
        )
    return Path(path)


def _open_journal(path: Path, create: bool) -> JournalStorage:
    """Open a journal with a lock that works on NFS.

    ``JournalFileOpenLock`` makes a lock file that must not exist, which NFS does since version 3.
    ``JournalFileSymlinkLock``, which works on version 2 too, makes a link that holds the journal's
    path as the locking host has it: where that path leads nowhere, others cannot tell the age of
    the lock, and wait for that of a dead worker for ever. Processes with either lock respect each
    other, as both use one name.
    """
    if not create and not path.is_file():
        raise _no_file("journal", path)
    shown, path = f"journal:{path}", path.resolve()
    try:
        with path.open("rb" if path.is_file() else "a+b") as file:
            file.seek(0)
            start = file.read(16)
    except OSError as error:
        raise _cannot_open(shown, error.strerror or str(error)) from None
    if start.startswith(b"SQLite format 3"):
        raise _cannot_open(shown, f"it is an SQLite database: write sqlite:///{path}")
    try:
        return JournalStorage(JournalFileBackend(str(path), JournalFileOpenLock(str(path))))
    except (ValueError, KeyError, TypeError):
        raise _cannot_open(shown, "it is not a journal of Optuna") from None


def _open_redis(storage: str) -> JournalStorage:
    try:
        with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
            return JournalStorage(JournalRedisBackend(storage))
    except ImportError:
        raise ValueError(
            f"the driver for {mask_password(storage)!r} is not installed: pip install redis"
        ) from None
    except Exception as error:  # those of a package that may not be installed
        raise _cannot_open(storage, describe_error(error, storage)) from None


def _open_grpc(storage: str, patience: float) -> BaseStorage:
    match = re.fullmatch(r"grpc://(\[[^]]+]|[^][/:@?]+)(?::(\d{1,5}))?/?", storage)
    if match is None:
        raise ValueError(
            f"{mask_password(storage)!r} is not the URL of a gRPC proxy: grpc://host:port"
        )
    try:
        importlib.import_module("grpc")
        importlib.import_module("google.protobuf")
        with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
            host, port = match[1], int(match[2] or _GRPC_PORT)
            client = GrpcStorageProxy(host=host, port=port)
        client.wait_server_ready(timeout=_GRPC_TIMEOUT)
    except ImportError as error:
        raise ValueError(
            f"{error.name} for {storage!r} is not installed: pip install 'optuna-robustloss[grpc]'"
        ) from None
    except ConnectionError:
        raise _cannot_open(
            storage,
            "no gRPC server answers there; start one with optuna.storages.run_grpc_proxy_server",
        ) from None
    return RetryingStorage(client, RetryPolicy(storage, patience))
