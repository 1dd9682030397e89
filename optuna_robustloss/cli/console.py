"""Set up the terminal and the process: output, one-line errors, checks of options.

This module and those with the commands import no PyTorch, Optuna or rich, so that ``--help`` and a
mistyped option answer at once; functions import what they need.
"""

from __future__ import annotations

import logging
import os
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    import torch
    from rich.console import Console


@cache
def console() -> Console:
    """Return the console for tables and progress bars."""
    from rich.console import Console

    # Names of studies and files may hold [brackets], which are no markup.
    return Console(markup=False, highlight=False)


def _raise_interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _is_no_interrupt(record: logging.LogRecord) -> bool:
    return not (record.exc_info and record.exc_info[0] is KeyboardInterrupt)


def set_up_process(threads: int = 1) -> None:
    """Set the number of threads, quieten Optuna, and let SIGTERM stop the process as Ctrl-C does.

    Args:
        threads: CPU threads of PyTorch.

    """
    import optuna
    import torch

    torch.set_num_threads(threads)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Optuna warns of a trial that Ctrl-C ended, with a traceback.
    logging.getLogger("optuna.study._optimize").addFilter(_is_no_interrupt)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    signal.signal(signal.SIGTERM, _raise_interrupt)


@contextmanager
def clear_errors() -> Iterator[None]:
    """Show errors of the input as one message and exit with code 2; bugs keep their traceback.

    With ``OPTUNA_ROBUSTLOSS_DEBUG`` set, every error keeps its traceback.
    """
    try:
        yield
    except Exception as error:
        # Exits and wrong options, which Typer shows, have an exit code.
        if hasattr(error, "exit_code") or os.environ.get("OPTUNA_ROBUSTLOSS_DEBUG"):
            raise
        from optuna.exceptions import StorageInternalError
        from pydantic import ValidationError
        from sqlalchemy.exc import SQLAlchemyError

        from optuna_robustloss.spec_files import describe_errors

        if isinstance(error, ValidationError):
            message = describe_errors(error)
        elif isinstance(error, ValueError | OSError | SQLAlchemyError | StorageInternalError):
            message = str(error)
        else:
            raise
        typer.echo(f"error: {message}", err=True)
        raise typer.Exit(2) from None


def parse_device(text: str) -> torch.device:
    """Return the device, or raise ``typer.BadParameter`` if this machine has no such device."""
    import torch

    try:
        device = torch.device(text)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise typer.BadParameter(f"device {text!r} cannot be used: {reason}") from None
    return device


def check_writable(path: Path | None) -> Path | None:
    """Return the path of a file to write, or raise ``typer.BadParameter`` before any work."""
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        raise typer.BadParameter(f"{str(path)!r} is not a file in an existing folder")
    return path


def default_storage(name: str) -> str:
    """Return the URL of a study's own SQLite database in the current folder."""
    return f"sqlite:///{name}.db"
