"""Several workers on one machine, each in a process of its own.

Parent and child have one pipe. The job goes through it, as a storage's URL may hold a password,
which a process's arguments and environment would show. After that the child sends what it logs and
the error it ends with, and the parent nothing but the word to stop; its end closes when it dies,
however it does, and that says the same.
"""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait

from optuna.study import Study
from optuna.trial import TrialState

from optuna_robustloss.distributed.child import STOPPED, Work
from optuna_robustloss.distributed.lease import Watch, fail, sign_of

_logger = logging.getLogger(__name__)

#: Seconds between two calls of ``on_poll``, if no child has anything to say.
_POLL = 1.0
#: Seconds that a trial may be without a sign of life after it was created.
_NEWBORN = 1.0


@dataclass(frozen=True)
class _Child:
    """A worker process as its parent sees it."""

    name: str
    process: subprocess.Popen[bytes]
    pipe: Connection


def run_processes(
    study: Study, jobs: Sequence[Work], *, on_poll: Callable[[], None] = lambda: None
) -> None:
    """Run each job in a process of its own until all have ended.

    Where a worker was killed, the others take its trials over. On an error of a worker, on Ctrl-C
    and on whatever ``on_poll`` raises, the workers give their candidates back, and it is raised
    when all have ended. A second Ctrl-C kills them.

    Args:
        study: of the jobs, as this process has it open.
        jobs: at least one.
        on_poll: called about once a second.

    Raises:
        ChildProcessError: all workers were killed, or one ended without a word.

    """
    children: list[_Child] = []
    try:
        with _signals_held():
            for number, job in enumerate(jobs, start=1):
                children.append(_start(f"worker {number}", job))
        _attend(children, on_poll)
    finally:
        _end(children)
        if any(child.process.returncode for child in children):
            _give_back(study)


@contextmanager
def _signals_held() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back; a process that starts meanwhile begins like that.

    So Ctrl-C, which a terminal sends to the children too, does not meet one half-way through its
    imports.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(name: str, job: Work) -> _Child:
    ours, theirs = Pipe()
    number = theirs.fileno()
    # For people who look at a list of processes, the study's name is there too.
    module = [
        "-P",
        "-m",
        "optuna_robustloss.distributed.child",
    ]  # -P: not one of the current folder
    process = subprocess.Popen(
        [sys.executable, *module, str(number), job.study_name],
        pass_fds=[number],
        stdin=subprocess.DEVNULL,
    )
    theirs.close()  # so that ours ends with the child
    with suppress(OSError):  # it has ended already, as will be seen
        ours.send(job)
    return _Child(name, process, ours)


def _attend(children: Sequence[_Child], on_poll: Callable[[], None]) -> None:
    """Pass on what the children say until all have ended; raise the first one's error."""
    by_pipe = {child.pipe: child for child in children}
    said: set[str] = set()
    killed = 0
    while by_pipe:
        for pipe in wait(list(by_pipe), timeout=_POLL):
            assert isinstance(pipe, Connection)
            child = by_pipe[pipe]
            try:
                message = pipe.recv()
            except (EOFError, OSError):
                del by_pipe[pipe]
                killed += _was_killed(child)
                continue
            if isinstance(message, BaseException):
                raise message
            level, text = message
            if text not in said:  # most warnings are everybody's
                said.add(text)
                _logger.log(level, "%s: %s", child.name, text)
        on_poll()
    if children and killed == len(children):
        raise ChildProcessError(
            "all workers were killed: the same command goes on from there; if memory was short, "
            "take fewer --workers or --candidates"
        )


def _was_killed(child: _Child) -> bool:
    """Whether a child that has ended was killed.

    Raises:
        ChildProcessError: it ended by itself, before it could send what is wrong.

    """
    code = child.process.wait()
    if code == STOPPED:
        _logger.warning("%s was stopped", child.name)
    elif code > 0:
        raise ChildProcessError(f"{child.name} ended with exit code {code}")
    elif code < 0:
        _logger.warning(
            "%s was killed by %s: the others take its trials over",
            child.name,
            signal.Signals(-code).name,
        )
    return code < 0


def _end(children: Sequence[_Child]) -> None:
    """Stop the children that still run, and wait for them; a second Ctrl-C kills them."""
    try:
        for child in children:
            with suppress(OSError):  # it has ended
                child.pipe.send("stop")
        for child in children:
            child.process.wait()
    finally:
        for child in children:
            child.process.kill()  # if it still runs
            child.process.wait()
            child.pipe.close()


def _give_back(study: Study) -> None:
    """Fail the trials of processes that could not do it themselves: their slots are drawn again.

    A trial that has just been created has no sign of life yet, and may be another host's: it gets
    a second to show one.
    """
    watch, begin = Watch(), time.monotonic()
    while True:
        late, doubtful = time.monotonic() - begin > _NEWBORN, False
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            unborn = sign_of(trial) is None and not trial.params and not trial.user_attrs
            if (unborn and late) or watch.stale(trial):
                fail(study._storage, trial._trial_id)
            else:
                doubtful |= unborn
        if not doubtful:
            return
        time.sleep(_NEWBORN / 10)
