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
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    import torch
    from rich.console import Console


#: Characters of an error message that are shown.
_LONGEST_MESSAGE = 4000


@cache
def console() -> Console:
    """Return the console for tables and progress bars."""
    from rich.console import Console

    # Names of studies and files may hold [brackets] and :colons:, which are no markup.
    return Console(markup=False, highlight=False, emoji=False)


def printable(text: str) -> str:
    r"""Return one line in which characters that a terminal would obey are escaped.

    >>> printable("\x1b[31mred\u202e")
    '\\x1b[31mred\\u202e'
    """
    return "".join(
        c if c.isprintable() else " " if c == "\n" else c.encode("unicode_escape").decode("ascii")
        for c in text
    )


def print_lines(text: str, *, err: bool = False) -> None:
    """Print lines, escaped; they are not broken, so that URLs and paths can be copied."""
    for line in text.split("\n"):
        typer.echo(printable(line), err=err)


class _OneLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def _raise_interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _is_no_interrupt(record: logging.LogRecord) -> bool:
    return not (record.exc_info and record.exc_info[0] is KeyboardInterrupt)


def set_up_process(threads: int = 1) -> None:
    """Set the number of threads and the logs, and let SIGTERM stop the process as Ctrl-C does.

    Args:
        threads: CPU threads of PyTorch.

    """
    import optuna
    import torch

    torch.set_num_threads(threads)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    optuna.logging.disable_default_handler()  # its records go where those of this package go
    optuna.logging.enable_propagation()
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_OneLine())
    warnings.formatwarning = lambda message, *_, **__: f"warning: {printable(str(message))}\n"
    # Optuna warns of a trial that Ctrl-C ended, with a traceback.
    logging.getLogger("optuna.study._optimize").addFilter(_is_no_interrupt)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    signal.signal(signal.SIGTERM, _raise_interrupt)


@contextmanager
def clear_errors() -> Iterator[None]:
    """Show errors of the input as one line and exit with code 2; bugs keep their traceback.

    Ctrl-C exits with code 130. With ``OPTUNA_ROBUSTLOSS_DEBUG`` set, all errors keep theirs.
    """
    try:
        yield
    except KeyboardInterrupt:
        print_lines("stopped", err=True)
        raise typer.Exit(130) from None
    except Exception as error:
        # Exits and wrong options, which Typer shows, have an exit code.
        if hasattr(error, "exit_code") or os.environ.get("OPTUNA_ROBUSTLOSS_DEBUG"):
            raise
        message = _input_error(error)
        if message is None:
            raise
        if len(message) > _LONGEST_MESSAGE:
            message = f"{message[:_LONGEST_MESSAGE]}…"
        print_lines(f"error: {printable(message)}", err=True)
        raise typer.Exit(2) from None


def _input_error(error: Exception) -> str | None:
    """Return the message of an error of the input or the environment; None for a bug."""
    from optuna.exceptions import StorageInternalError
    from pydantic import ValidationError
    from sqlalchemy.exc import SQLAlchemyError

    from optuna_robustloss.distributed.retry import describe_error
    from optuna_robustloss.spec_files import describe_errors

    if isinstance(error, ValidationError):
        return describe_errors(error)
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, ValueError | OSError):
        return str(error) or type(error).__name__
    if isinstance(error, RecursionError):
        return "an input nests too deeply"
    if isinstance(error, SQLAlchemyError | StorageInternalError):
        return describe_error(error, os.environ.get("OPTUNA_STORAGE", ""))
    return None


def parse_device(text: str) -> torch.device:
    """Return the device, or raise ``typer.BadParameter`` if this machine has no such device."""
    import torch

    try:
        device = torch.device(text)
        torch.zeros(1, device=device).item()  # the device "meta" holds no numbers
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise typer.BadParameter(f"device {text!r} cannot be used: {reason}") from None
    return device
