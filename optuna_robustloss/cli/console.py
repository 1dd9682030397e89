"""The terminal of the command line: where it prints, how errors look, what options may be."""

from __future__ import annotations

import logging
import os
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
import torch
import typer
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from pydantic import ValidationError
from rich.console import Console
from rich.text import Text
from sqlalchemy.exc import SQLAlchemyError

from optuna_robustloss.spec_files import explain

# Names of studies and files may hold [brackets]; they are no markup.
console = Console(markup=False, highlight=False)
errors = Console(stderr=True, markup=False, highlight=False)


def say(text: str) -> None:
    """Print a line as it is: URLs and paths are not broken, so that they can be copied."""
    console.print(text, soft_wrap=True)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _no_interrupt(record: logging.LogRecord) -> bool:
    return not (record.exc_info and record.exc_info[0] is KeyboardInterrupt)


def set_up_process(threads: int) -> None:
    """Set up a process that works on a study: quiet, and stopped by SIGTERM as by Ctrl-C."""
    torch.set_num_threads(threads)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Optuna warns of a trial that Ctrl-C ended, with a traceback.
    logging.getLogger("optuna.study._optimize").addFilter(_no_interrupt)
    warnings.simplefilter("ignore", ExperimentalWarning)
    signal.signal(signal.SIGTERM, _interrupt)


@contextmanager
def clear_errors() -> Iterator[None]:
    """Show what went wrong with the input in one message; bugs keep their traceback.

    With OPTUNA_ROBUSTLOSS_DEBUG set, every error keeps it.
    """
    try:
        yield
    except (ValueError, OSError, SQLAlchemyError, StorageInternalError) as error:
        if os.environ.get("OPTUNA_ROBUSTLOSS_DEBUG"):
            raise
        message = explain(error) if isinstance(error, ValidationError) else str(error)
        errors.print(Text.assemble(("error:", "bold red"), f" {message}"), soft_wrap=True)
        raise typer.Exit(2) from None


def parse_device(text: str) -> torch.device:
    """Return the device, or raise ``typer.BadParameter`` if this machine has no such device."""
    try:
        device = torch.device(text)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise typer.BadParameter(f"device {text!r} cannot be used: {reason}") from None
    return device


def writable(path: Path | None) -> Path | None:
    """Return the path of a file to write, or raise ``typer.BadParameter`` before any work."""
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        raise typer.BadParameter(f"{str(path)!r} is not a file in an existing folder")
    return path


def default_storage(name: str) -> str:
    """Return the URL of a study's own database in the current folder."""
    return f"sqlite:///{name}.db"
