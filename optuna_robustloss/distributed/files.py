"""Files of storages: the path in a URL, and what keeps such a file from being used."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from urllib.parse import quote

from sqlalchemy.engine import make_url

from optuna_robustloss.distributed.urls import cannot_open, shorten

#: Options of Python's ``sqlite3.connect``, and with ``uri=true`` those of SQLite itself.
_OPTIONS = (
    "timeout|isolation_level|detect_types|check_same_thread|cached_statements|uri|"
    "mode|cache|vfs|nolock|immutable|psow"
)
_QUERY = re.compile(rf"\?(?:(?:{_OPTIONS})=[^&?]*(?:&|$))+\Z")
_SQLITE = re.compile(r"(sqlite(?:\+\w+)?:///)(.*)", re.DOTALL)


def split_sqlite_url(url: str) -> tuple[str, str, str] | None:
    """Split ``sqlite:///PATH?OPTIONS`` into scheme, path and options; None for another URL.

    The path is literal: nothing in it is percent-decoded, and ``?`` and ``#`` belong to it, unless
    all that follows a ``?`` are options of SQLite.

    >>> split_sqlite_url("sqlite:///50%20#1?.db?timeout=9")
    ('sqlite:///', '50%20#1?.db', '?timeout=9')
    """
    match = _SQLITE.fullmatch(url)
    if match is None:
        return None
    query = _QUERY.search(match[2])
    end = query.start() if query else len(match[2])
    return match[1], match[2][:end], match[2][end:]


def is_in_memory(url: str) -> bool:
    """Return whether a URL names a database in this process's memory.

    >>> [is_in_memory(url) for url in ("sqlite://", "sqlite:///:memory:", "sqlite:///a.db")]
    [True, True, False]
    """
    scheme, _, rest = url.partition(":")
    parts = split_sqlite_url(f"{scheme.lower()}:{rest}")
    if parts is None:
        return bool(re.fullmatch(r"(?is)sqlite(\+\w+)?:(//)?(\?.*)?", url))
    _, path, options = parts
    return path in ("", ":memory:", "file::memory:") or "mode=memory" in options


def sqlalchemy_url(scheme: str, path: str, options: str) -> str:
    """Return the URL from which SQLAlchemy reads a literal path.

    Version 2.1 decodes paths. Version 2.0 does not, where a path with a question mark is written
    as a ``file:`` name, which SQLite decodes.
    """
    if any("\ud800" <= character <= "\udfff" for character in path):
        raise cannot_open(scheme + path, "the path is not UTF-8")
    if make_url("sqlite:///%41").database == "A":
        return scheme + quote(path) + options
    if "?" not in path:
        return scheme + path + options
    return f"{scheme}file:{quote(os.path.abspath(path))}{options or '?'}&uri=true"


def check_file(url: str, path: Path, *, create: bool) -> None:
    """Raise an error that says what keeps a storage's file from being opened.

    Args:
        url: of the storage, for the message.
        path: of the file.
        create: the file is made if it is not there.

    Raises:
        FileNotFoundError: there is no such file, and ``create`` is off.
        ValueError: another reason.

    """
    folder = path.absolute().parent
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        if not create:
            raise FileNotFoundError(
                f"there is no {'journal' if url.startswith('journal:') else 'database'} "
                f"{shorten(str(path))}: check the name and the current folder, or create a study "
                "first"
            ) from None
        if not folder.is_dir():
            raise cannot_open(url, f"there is no folder {str(folder)!r}: make it first") from None
        if not os.access(folder, os.W_OK | os.X_OK):
            raise cannot_open(url, f"the folder {str(folder)!r} is read-only") from None
    except (OSError, ValueError) as error:  # too long a name, a null character, no permission
        raise cannot_open(url, getattr(error, "strerror", None) or str(error)) from None
    else:
        if stat.S_ISDIR(mode):
            raise cannot_open(url, "it is a folder: name a file in it")
        if not stat.S_ISREG(mode):
            raise cannot_open(url, "it is not a regular file")
        if not os.access(path, os.R_OK):
            raise cannot_open(url, "permission to read it is denied")


def is_file(text: str) -> bool:
    """Return whether a text is the path of a file; one that cannot be a path is not."""
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # too long, no permission, a null character
        return False
