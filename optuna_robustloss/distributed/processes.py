"""Several workers on one machine, each in a process of its own.

Parent and worker have one pipe. The job goes to a fresh interpreter through ``multiprocessing``, as
a storage's URL may hold a password, which arguments and environment would show. The worker sends
its log records and the error it ends with; the parent sends the word to stop. When the parent ends,
the pipe is closed, which stops the worker too.
"""

from __future__ import annotations

import logging
import logging.handlers
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Protocol

import optuna
from optuna.study import Study

from optuna_robustloss.distributed.lease import fail_orphaned_trials

_logger = logging.getLogger(__name__)
_spawn = multiprocessing.get_context("spawn")

#: Exit code of a worker that was stopped.
_STOPPED = 130
#: Seconds between two calls of ``on_poll``, if no worker sends anything.
_POLL = 1.0
#: Seconds after which a worker's main thread is interrupted again: an exception in a transaction
#: may leave a lock for which the thread waits. Many, as it may still be failing its trials.
_INTERRUPT_AGAIN = 60.0


class WorkerJob(Protocol):
    """What a worker process does; it is pickled."""

    @property
    def set_up(self) -> Callable[[], None]:
        """Called first, in a fresh process; makes SIGTERM raise ``KeyboardInterrupt``."""

    def run(self) -> None:
        """Work until there is nothing left to do."""


#: The worker process at the other end of each pipe.
_Workers = Mapping[Connection, SpawnProcess]


def run_processes(
    study: Study, jobs: Sequence[WorkerJob], *, on_poll: Callable[[], None] = lambda: None
) -> None:
    """Run each job in a process of its own until all have ended.

    The trials of a worker that was killed are taken over by the others. On an error of a worker,
    on Ctrl-C and on whatever ``on_poll`` raises, the workers fail their running trials, so that
    their candidates are drawn again, and it is raised when all have ended. A second Ctrl-C kills
    them.

    Args:
        study: of the jobs, as this process has it open.
        jobs: at least one.
        on_poll: called about once a second.

    Raises:
        ChildProcessError: all workers were killed, or one ended without an error message.

    """
    workers: dict[Connection, SpawnProcess] = {}
    try:
        # Workers inherit the mask: a terminal's Ctrl-C does not interrupt their imports.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            for number, job in enumerate(jobs, start=1):
                ours, theirs = _spawn.Pipe()
                arguments = (job, theirs)
                process = _spawn.Process(target=_run_job, args=arguments, name=f"worker {number}")
                process.start()
                theirs.close()  # so that ours ends with the worker
                workers[ours] = process
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        _attend_workers(workers, on_poll)
    finally:
        _stop_workers(workers)
        if any(process.exitcode for process in workers.values()):
            fail_orphaned_trials(study)


def _attend_workers(workers: _Workers, on_poll: Callable[[], None]) -> None:
    """Log what the workers send until all have ended; raise the first one's error."""
    running = dict(workers)
    logged: set[str] = set()
    killed = 0
    while running:
        for pipe in wait(list(running), timeout=_POLL):
            assert isinstance(pipe, Connection)
            try:
                message = pipe.recv()
            except (EOFError, OSError):
                killed += _was_killed(running.pop(pipe))
                continue
            if isinstance(message, BaseException):
                raise message
            text = message.getMessage()
            if text not in logged:  # most warnings concern all workers
                logged.add(text)
                _logger.log(message.levelno, "%s: %s", running[pipe].name, text)
        on_poll()
    if workers and killed == len(workers):
        raise ChildProcessError(
            "all workers were killed: the same command resumes the study; if memory was short, "
            "take fewer --workers or --candidates"
        )


def _was_killed(worker: SpawnProcess) -> bool:
    """Return whether a worker that has ended was killed by a signal.

    Raises:
        ChildProcessError: it ended by itself, before it could send its error.

    """
    worker.join()
    code = worker.exitcode or 0
    if code == _STOPPED:
        _logger.warning("%s was stopped", worker.name)
    elif code > 0:
        raise ChildProcessError(f"{worker.name} ended with exit code {code}")
    elif code < 0:
        name = signal.Signals(-code).name
        _logger.warning("%s was killed by %s: the others take its trials over", worker.name, name)
    return code < 0


def _stop_workers(workers: _Workers) -> None:
    """Stop the workers that still run, and wait for them; a second Ctrl-C kills them."""
    try:
        for pipe in workers:
            with suppress(OSError):  # the worker has ended
                pipe.send("stop")
        for process in workers.values():
            process.join()
    finally:
        for pipe, process in workers.items():
            process.kill()  # if it still runs
            process.join()
            pipe.close()


# In the worker's process


class _PipeHandler(logging.handlers.QueueHandler):
    """Sends log records from warnings on to the parent, whose terminal it is."""

    def enqueue(self, record: logging.LogRecord) -> None:
        with suppress(OSError):  # the parent has ended
            self.queue.send(record)  # type: ignore[attr-defined]


def _run_job(job: WorkerJob, pipe: Connection) -> None:
    """Run a job; SIGINT stays blocked, as Ctrl-C is the parent's, which says when to stop."""
    _log_to_parent(pipe)
    code = _STOPPED
    try:
        try:
            job.set_up()
            threading.Thread(target=_interrupt_on_stop, args=(pipe,), daemon=True).start()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
            job.run()
            code = 0
        except Exception as error:
            with suppress(OSError):
                pipe.send(_picklable(error))
            code = 0  # the parent has the error
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
    finally:  # also after a second interrupt, as one of this process and one of its parent
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # tearing down PyTorch takes seconds


def _log_to_parent(pipe: Connection) -> None:
    handler = _PipeHandler(pipe)  # type: ignore[arg-type]
    handler.setLevel(logging.WARNING)
    logging.getLogger().addHandler(handler)
    optuna.logging.disable_default_handler()
    optuna.logging.enable_propagation()
    logging.captureWarnings(True)
    warnings.formatwarning = lambda message, category, *_: f"{category.__name__}: {message}"


def _interrupt_on_stop(pipe: Connection) -> None:
    """Interrupt the main thread when the parent sends a word, or has ended."""
    dropped = threading.Event()  # Python drops an exception in a finaliser
    sys.unraisablehook = lambda _: dropped.set()
    with suppress(EOFError, OSError):
        pipe.recv()
    while True:  # until the process ends
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
        dropped.wait(_INTERRUPT_AGAIN)
        dropped.clear()


def _picklable(error: Exception) -> Exception:
    """Return the error as it can be sent, with its traceback as a note."""
    error.add_note("In the worker:\n" + "".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever an exception's own constructor raises
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
