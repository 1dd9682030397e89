"""Journals: files of one JSON line per operation, for a folder that several hosts share."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend, JournalFileOpenLock

from optuna_robustloss.distributed.files import check_file
from optuna_robustloss.distributed.urls import cannot_open, mask_password

#: How every line of a journal begins.
_BEGINNING = b'{"op_code":'
_BLOCK = 4096


class JournalFile(BaseJournalBackend):
    """Optuna's journal file, in which a line that was not written to its end is repaired.

    A full disk or a killed writer leaves a last line without a newline. No reader has applied it.
    The next writer cuts it off while it holds the journal's lock; Optuna's own writer would append
    to it and make the journal unreadable.

    ``JournalFileOpenLock`` makes a lock file that must not exist, which NFS does since version 3.
    ``JournalFileSymlinkLock``, which works on version 2 too, makes a link that holds the journal's
    path as the locking host has it: where that path leads nowhere, others cannot tell the age of
    the lock, and wait for that of a dead worker for ever. Processes with either lock respect each
    other, as both use one name.

    Args:
        path: absolute; the file is made if it is not there.

    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = JournalFileOpenLock(str(path))
        self._file = JournalFileBackend(str(path), self._lock)
        #: Number of the line that was read last.
        self.line = 0

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """Yield the operations from a number on.

        Raises:
            ValueError: a line is damaged; names file and line.

        """
        self.line = log_number_from
        try:
            for log in self._file.read_logs(log_number_from):
                self.line += 1
                yield log
        except ValueError as error:
            raise ValueError(_damaged(self._path, self.line + 1, str(error))) from None

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append operations, each a line.

        Raises:
            OSError: they could not be written, for example on a full disk; names the file.

        """
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        self._lock.acquire()
        try:
            with open(self._path, "a+b", buffering=0) as file:
                _cut_torn_line(file)
                try:
                    rest = memoryview(lines.encode())
                    while rest:
                        rest = rest[file.write(rest) :]
                    os.fsync(file.fileno())
                except BaseException:
                    _cut_torn_line(file)
                    raise
        except OSError as error:
            raise type(error)(error.errno, error.strerror, str(self._path)) from None
        finally:
            self._lock.release()


def _cut_torn_line(file: FileIO) -> None:
    """Cut off what follows the last newline of a locked journal."""
    end = position = file.seek(0, os.SEEK_END)
    kept = -1
    while position > 0 and kept < 0:
        start = max(0, position - _BLOCK)
        file.seek(start)
        newline = file.read(position - start).rfind(b"\n")
        kept = start + newline + 1 if newline >= 0 else -1
        position = start
    if max(kept, 0) < end:
        file.truncate(max(kept, 0))


def _damaged(path: Path, line: int, why: str) -> str:
    return (
        f"the journal {str(path)!r} is damaged in line {line} ({why}): stop all workers, copy the "
        "file, and delete that line"
    )


def journal_path(url: str) -> Path:
    """Return the path in ``journal:PATH`` or ``journal:///PATH``."""
    path = url.removeprefix("journal:")
    if path.startswith("//"):
        path = path.removeprefix("//")
        if not path.startswith("/"):
            path = ""
    if not path:
        raise ValueError(
            f"{mask_password(url)!r} is not a journal: write journal:search.log for a file in the "
            "current folder, or journal:///folder/search.log"
        )
    return Path(os.path.expanduser(path))


def open_journal(path: Path, *, create: bool) -> JournalStorage:
    """Open a journal.

    Raises:
        FileNotFoundError: there is no such file, and ``create`` is off.
        ValueError: it is not a journal, or cannot be opened.

    """
    url = f"journal:{path}"
    check_file(url, path, create=create)
    path = path.resolve()
    try:
        with path.open("rb" if path.is_file() else "a+b") as file:
            start = file.read(16)
    except OSError as error:
        raise cannot_open(url, error.strerror or str(error)) from None
    if start.startswith(b"SQLite format 3"):
        raise cannot_open(url, f"it is an SQLite database: write sqlite:///{path}")
    if start[: len(_BEGINNING)] != _BEGINNING[: len(start)]:
        raise cannot_open(url, "it is not a journal of Optuna")
    backend = JournalFile(path)
    try:
        return JournalStorage(backend)
    except ValueError as error:
        raise cannot_open(url, str(error)) from None
    except OSError:
        raise
    except Exception as error:  # of Optuna's replay, which does not check what it reads
        why = f"it is not an operation: {type(error).__name__}"
        raise cannot_open(url, _damaged(path, backend.line, why)) from None
