"""Output paths: checked before work begins."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import typer


def default_storage(name: str) -> str:
    """Return the URL of a study's own SQLite database in the current folder; see ``own_file``."""
    return f"sqlite:///{own_file(name, '.db', '--storage')}"


def own_file(name: str, suffix: str, option: str) -> Path:
    """Return the path of a study's own file in the current folder.

    Raises:
        ValueError: the study's name has a separator or control characters, or such a file cannot
            be written; the message names the ``option`` that gives another path.

    """
    strange = [c for c in name if c in "/\\" or not c.isprintable()]
    if strange:
        raise ValueError(
            f"the study name {name!r} has {strange[0]!r} in it and cannot name a file: give "
            f"{option}, or another study name"
        )
    path = Path(f"{name}{suffix}")
    if reason := _unwritable(path):
        raise ValueError(f"{str(path)!r} cannot be written: {reason}; give {option}")
    return path


def check_file(path: Path | None) -> Path | None:
    """Return the path of a file to write, or raise ``typer.BadParameter`` before any work."""
    if path is not None and (reason := _unwritable(path)):
        raise typer.BadParameter(f"{str(path)!r} cannot be written: {reason}")
    return path


def check_folder(path: Path) -> Path:
    """Return the path of a folder to write, or raise ``typer.BadParameter`` before any work."""
    try:
        existing = next(p for p in (path, *path.absolute().parents) if p.exists())
        for part in (*path.parts, "x"):
            with suppress(FileNotFoundError):
                os.lstat(existing / part)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise typer.BadParameter(f"{str(path)!r} cannot be a folder: {reason}") from None
    if not os.access(existing, os.W_OK | os.X_OK):
        raise typer.BadParameter(f"{str(path)!r} cannot be written: {existing} is read-only")
    return path


def _unwritable(path: Path) -> str | None:
    """Return why a file cannot be written as a draft beside it that replaces it; None if it can."""
    try:
        if path.is_dir():
            return "it is a directory"
        if path.exists() and not path.is_file():
            return "it is a device or a pipe"
        if not path.parent.is_dir():
            return f"there is no directory {str(path.parent)!r}"
        draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        draft.touch()
        draft.unlink()
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error)
    return None
