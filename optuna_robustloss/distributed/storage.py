"""Storages by their URL: a file, a database server, a journal, or a gRPC proxy."""

from __future__ import annotations

import importlib
import re
import warnings
from dataclasses import replace
from pathlib import Path

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import BaseStorage, GrpcStorageProxy, JournalStorage
from optuna.storages.journal import JournalRedisBackend
from optuna.study import Study

from optuna_robustloss.distributed.databases import open_database
from optuna_robustloss.distributed.files import is_file
from optuna_robustloss.distributed.journal import journal_path, open_journal
from optuna_robustloss.distributed.retry import RetryPolicy, describe_error
from optuna_robustloss.distributed.retrying_storage import RetryingStorage
from optuna_robustloss.distributed.urls import cannot_open, show_url

#: Seconds until a gRPC server must have answered once.
_GRPC_TIMEOUT = 10.0
_GRPC_PORT = 13000


def open_storage(
    url: str, *, create: bool = False, wait: bool = False, patience: float = 300.0
) -> BaseStorage:
    """Open an Optuna storage by its URL: a database, a journal, or a gRPC proxy.

    A process takes two connections to a database server, for its worker and its heartbeat, and at
    most four. Optuna's own heartbeat stays off: leases tell which workers are alive.

    The path of a file is what follows ``sqlite:///`` or ``journal:``, as it is written: nothing is
    percent-decoded, ``?`` and ``#`` are part of it, and a leading ``~/`` is the home folder. Only
    options of SQLite at the end, such as ``?timeout=9``, are none of the path.

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
        wait: retry also while a database or gRPC server cannot be reached at the start, as workers
            do; without it, that is an error at once.
        patience: seconds for which each call is retried while a database or gRPC server is
            locked or unavailable.

    Raises:
        FileNotFoundError: there is no such file, and ``create`` is off.
        ValueError: the URL is malformed, its driver is missing, or the database does not answer.

    """
    if "://" not in url and is_file(url):
        return open_journal(Path(url), create=create)
    scheme, colon, rest = url.partition(":")
    scheme = scheme.lower()
    url = scheme + colon + rest
    if scheme == "grpc":
        return _open_grpc(url, patience=patience, wait=wait)
    if scheme in ("redis", "rediss"):
        return _open_redis(url)
    if scheme == "journal":
        return open_journal(journal_path(url), create=create)
    return open_database(url, create=create, patience=patience, wait=wait)


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


def _open_redis(url: str) -> JournalStorage:
    try:
        with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
            return JournalStorage(JournalRedisBackend(url))
    except ImportError:
        raise ValueError(
            f"the driver for {show_url(url)} is not installed: pip install redis"
        ) from None
    except Exception as error:  # those of a package that may not be installed
        raise cannot_open(url, describe_error(error, url)) from None


def _open_grpc(url: str, *, patience: float, wait: bool) -> BaseStorage:
    match = re.fullmatch(r"grpc://(\[[\da-fA-F:.]+]|\w[\w.-]*)(?::(\d{1,5}))?/?", url)
    if match is None or not 0 < int(match[2] or _GRPC_PORT) < 2**16:
        raise ValueError(
            f"{show_url(url)} is not the URL of a gRPC proxy: use grpc://host:port, with a port "
            "from 1 to 65535"
        )
    policy = RetryPolicy(url, patience)
    # Of ConnectionError, which Optuna raises where no server answers in time.
    waiting = replace(policy, kind=lambda error: "unavailable" if wait else None)
    try:
        importlib.import_module("grpc")
        importlib.import_module("google.protobuf")
        with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
            client = GrpcStorageProxy(host=match[1], port=int(match[2] or _GRPC_PORT))
        waiting.call(lambda: client.wait_server_ready(timeout=_GRPC_TIMEOUT))
    except ImportError as error:
        raise ValueError(
            f"{error.name} for {show_url(url)} is not installed: "
            "pip install 'optuna-robustloss[grpc]'"
        ) from None
    except (ConnectionError, StorageInternalError):
        raise cannot_open(
            url,
            "no gRPC server answers there; start one with optuna.storages.run_grpc_proxy_server",
        ) from None
    return RetryingStorage(client, policy)
