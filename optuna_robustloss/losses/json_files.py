"""Read JSON from files that may be damaged or hostile: one error that names the file."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from reprlib import Repr
from typing import Any

#: Bytes of the largest file that is read.
MAX_BYTES = 4 * 2**20
#: Characters of a value that an error message repeats.
_SHOWN = 80
_REPR = Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = _SHOWN


def show_value(value: object) -> str:
    """Return a value for an error message: printable, on one line, and cut.

    >>> show_value("x" * 1000)
    "'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx...xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx'"

    """
    text = _REPR.repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def read_text(path: str | Path) -> str:
    """Return the text of a regular file of at most ``MAX_BYTES``, a byte order mark left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is of another kind, too large, unreadable or not in UTF-8.

    """
    where = show_value(str(path))[1:-1]
    try:
        found = Path(path).stat()  # before it is opened: opening a FIFO waits for a writer
        content = b""
        if stat.S_ISREG(found.st_mode) and found.st_size <= MAX_BYTES:
            content = Path(path).read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no loss file {where}") from None
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{where} cannot be read: {reason}") from None
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{where} is not a regular file, so not a loss file")
    if found.st_size > MAX_BYTES:
        raise ValueError(f"{where} has {found.st_size} bytes, a loss file at most {MAX_BYTES}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not a JSON file, or is damaged: {error}") from None


def parse_json(text: str, where: str) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: not JSON, nested too deeply, or an object with a key given twice.

    """
    try:
        return json.loads(text, object_pairs_hook=_without_duplicates)
    except RecursionError:
        raise ValueError(f"{where} is not a loss file: it is nested too deeply") from None
    except ValueError as error:  # not JSON, or an integer of thousands of digits
        raise ValueError(f"{where} is not a JSON file, or is damaged: {error}") from None


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {show_value(key)} is given twice")
        found[key] = value
    return found
