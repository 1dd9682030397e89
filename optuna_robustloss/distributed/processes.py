"""Several workers on one machine, each in a process of its own.

Parent and worker have one pipe. The job goes to a fresh interpreter through ``multiprocessing``, as
a storage's URL may hold a password, which arguments and environment would show. The worker sends
its log records and the error it ends with; the parent sends the word to stop. Its end of the pipe
closes when it dies, which stops the worker too.
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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
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
#: Seconds after which a worker's main thread is interrupted again: in a finaliser Python drops the
#: exception, and one in a transaction may leave a lock for which the thread waits itself.
_INTERRUPT_AGAIN = 10.0


class WorkerJob(Protocol):
    """What a worker process does; it is pickled."""

    @property
    def set_up(self) -> Callable[[], None]:
        """Called first, in a fresh process; makes SIGTERM raise ``KeyboardInterrupt``."""

    def run(self) -> None:
        """Work until there is nothing left to do."""


@dataclass(frozen=True)
class _Worker:
    """A worker process as its parent sees it."""

    name: str
    process: SpawnProcess
    pipe: Connection


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
    workers: list[_Worker] = []
    try:
        with _block_signals():
            for number, job in enumerate(jobs, start=1):
                workers.append(_start_worker(f"worker {number}", job))
        _attend_workers(workers, on_poll)
    finally:
        _stop_workers(workers)
        if any(worker.process.exitcode for worker in workers):
            fail_orphaned_trials(study)


@contextmanager
def _block_signals() -> Iterator[None]:
    """Block SIGINT and SIGTERM; a process that starts meanwhile inherits that.

    So Ctrl-C, which a terminal sends to the workers too, does not interrupt their imports.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(name: str, job: WorkerJob) -> _Worker:
    ours, theirs = _spawn.Pipe()
    process = _spawn.Process(target=_run_job, args=(job, theirs), name=name)
    process.start()
    theirs.close()  # so that ours ends with the worker
    return _Worker(name, process, ours)


def _attend_workers(workers: Sequence[_Worker], on_poll: Callable[[], None]) -> None:
    """Log what the workers send until all have ended; raise the first one's error."""
    by_pipe = {worker.pipe: worker for worker in workers}
    logged: set[str] = set()
    killed = 0
    while by_pipe:
        for pipe in wait(list(by_pipe), timeout=_POLL):
            assert isinstance(pipe, Connection)
            worker = by_pipe[pipe]
            try:
                message = pipe.recv()
            except (EOFError, OSError):
                del by_pipe[pipe]
                killed += _was_killed(worker)
                continue
            if isinstance(message, BaseException):
                raise message
            text = message.getMessage()
            if text not in logged:  # most warnings concern all workers
                logged.add(text)
                _logger.log(message.levelno, "%s: %s", worker.name, text)
        on_poll()
    if workers and killed == len(workers):
        raise ChildProcessError(
            "all workers were killed: the same command resumes the study; if memory was short, "
            "take fewer --workers or --candidates"
        )


def _was_killed(worker: _Worker) -> bool:
    """Return whether a worker that has ended was killed.

    Raises:
        ChildProcessError: it ended by itself, before it could send its error.

    """
    worker.process.join()
    code = worker.process.exitcode or 0
    if code == _STOPPED:
        _logger.warning("%s was stopped", worker.name)
    elif code > 0:
        raise ChildProcessError(f"{worker.name} ended with exit code {code}")
    elif code < 0:
        _logger.warning(
            "%s was killed by %s: the others take its trials over",
            worker.name,
            signal.Signals(-code).name,
        )
    return code < 0


def _stop_workers(workers: Sequence[_Worker]) -> None:
    """Stop the workers that still run, and wait for them; a second Ctrl-C kills them."""
    try:
        for worker in workers:
            with suppress(OSError):  # it has ended
                worker.pipe.send("stop")
        for worker in workers:
            worker.process.join()
    finally:
        for worker in workers:
            worker.process.kill()  # if it still runs
            worker.process.join()
            worker.pipe.close()


# In the worker's process


class _PipeHandler(logging.handlers.QueueHandler):
    """Sends log records from warnings on to the parent, whose terminal it is."""

    def enqueue(self, record: logging.LogRecord) -> None:
        with suppress(OSError):  # the parent is gone
            self.queue.send(record)  # type: ignore[attr-defined]


def _run_job(job: WorkerJob, pipe: Connection) -> None:
    """Run a job; SIGINT stays blocked, as Ctrl-C is the parent's, which says when to stop."""
    _log_to_parent(pipe)
    ending = threading.Event()
    code = 1
    try:
        job.set_up()
        threading.Thread(target=_interrupt_on_stop, args=(pipe, ending), daemon=True).start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        job.run()
        code = 0
    except KeyboardInterrupt:
        code = _STOPPED
    except Exception as error:
        with suppress(OSError):
            pipe.send(_picklable(error))
        code = 0  # the parent has the error
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        ending.set()
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


def _interrupt_on_stop(pipe: Connection, ending: threading.Event) -> None:
    """Interrupt the main thread when the parent says so, or is gone."""
    with suppress(EOFError, OSError):
        pipe.recv()
    while not ending.is_set():
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
        ending.wait(_INTERRUPT_AGAIN)


def _picklable(error: Exception) -> Exception:
    """Return the error as it can be sent, with its traceback as a note."""
    error.add_note("In the worker:\n" + "".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever an exception's own constructor raises
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
