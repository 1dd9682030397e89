"""The worker's side of ``run_processes``: a fresh interpreter that ends when its parent does."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Protocol

import optuna

#: Exit code of a worker that was told to stop.
STOPPED = 130
#: Seconds after which the main thread is interrupted again: in a finaliser Python drops the
#: exception, and one in a transaction may leave a lock for which the thread waits itself.
_AGAIN = 10.0


class Work(Protocol):
    """What a worker process is told; it is pickled."""

    @property
    def study_name(self) -> str:
        """Of the study it works on."""

    @property
    def set_up(self) -> Callable[[], None]:
        """Called first, in a fresh process; makes SIGTERM raise ``KeyboardInterrupt``."""

    def run(self) -> None:
        """Work."""


class _Forward(logging.Handler):
    """Sends what is logged to the parent, whose terminal it is: pairs of a level and a text."""

    def __init__(self, pipe: Connection) -> None:
        super().__init__(logging.WARNING)
        self._pipe = pipe

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):  # the parent is gone
            self._pipe.send((record.levelno, self.format(record)))


def main() -> None:
    """Run the job that comes through the pipe whose number is the first argument.

    The parent has blocked SIGINT and SIGTERM. The first stays so: Ctrl-C is the parent's, which
    says when to stop.
    """
    pipe = Connection(int(sys.argv[1]))
    _log_to(_Forward(pipe))
    caught = threading.Event()
    code = 1
    try:
        job: Work = pipe.recv()
        job.set_up()
        threading.Thread(target=_obey, args=(pipe, caught), daemon=True).start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        job.run()
        code = 0
    except (KeyboardInterrupt, EOFError):
        code = STOPPED
    except Exception as error:
        with suppress(OSError):
            pipe.send(_portable(error))
        code = 0  # the parent knows
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        caught.set()
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # taking all of PyTorch down would take seconds that somebody waits for


def _log_to(handler: logging.Handler) -> None:
    logging.getLogger().addHandler(handler)
    optuna.logging.disable_default_handler()
    optuna.logging.enable_propagation()
    logging.captureWarnings(True)
    warnings.formatwarning = lambda message, category, *_: f"{category.__name__}: {message}"


def _obey(pipe: Connection, caught: threading.Event) -> None:
    """Interrupt the main thread when the parent says so, or is gone."""
    with suppress(EOFError, OSError):
        pipe.recv()
    while not caught.is_set():
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
        caught.wait(_AGAIN)


def _portable(error: Exception) -> Exception:
    """Return the error as it can be sent, with its traceback as a note."""
    error.add_note("In the worker:\n" + "".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever an exception's own constructor raises
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


if __name__ == "__main__":
    main()
