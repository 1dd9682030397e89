"""Set up the terminal and the process: output, one-line errors, checks of options.

This module and those with the commands import no PyTorch and no Optuna, so that ``--help`` and a
mistyped option answer at once; functions import what they need.
"""

from __future__ import annotations

import logging
import os
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    import torch

# Names of studies and files may hold [brackets], which are no markup.
console = Console(markup=False, highlight=False)
errors = Console(stderr=True, markup=False, highlight=False)


def print_line(text: str) -> None:
    """Print a line without breaking it, so that URLs and paths can be copied."""
    console.print(text, soft_wrap=True)


def _raise_interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _is_no_interrupt(record: logging.LogRecord) -> bool:
    return not (record.exc_info and record.exc_info[0] is KeyboardInterrupt)


def set_up_process(threads: int) -> None:
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


def input_error(error: Exception) -> str | None:
    """Return the message of an error of the input or the environment; None for a bug."""
    from optuna.exceptions import StorageInternalError
    from pydantic import ValidationError
    from sqlalchemy.exc import SQLAlchemyError

    from optuna_robustloss.spec_files import describe_errors

    if isinstance(error, ValidationError):
        return describe_errors(error)
    expected = isinstance(error, ValueError | OSError | SQLAlchemyError | StorageInternalError)
    return str(error) if expected else None


@contextmanager
def clear_errors() -> Iterator[None]:
    """Show errors of the input as one message and exit with code 2; bugs keep their traceback.

    With ``OPTUNA_ROBUSTLOSS_DEBUG`` set, every error keeps its traceback.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, typer.Exit) or os.environ.get("OPTUNA_ROBUSTLOSS_DEBUG"):
            raise
        message = input_error(error)
        if message is None:
            raise
        errors.print(Text.assemble(("error:", "bold red"), f" {message}"), soft_wrap=True)
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
