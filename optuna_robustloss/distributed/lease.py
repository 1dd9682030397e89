"""Signs of life of running trials, and who has stopped giving them.

A trial's owner rewrites one system attribute from time to time. Nobody compares clocks: whoever
watches notes, by its own clock, when it last saw the attribute change. So hosts with wrong clocks
do not fail each other's trials, and it works in every Optuna storage, with ``study.ask`` too.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

_LEASE = "generational-cma:lease"
_logger = logging.getLogger(__name__)

#: Seconds without a sign of life after which a trial is taken over.
LEASE = 120.0
#: Signs of life per lease, so that a few may be lost.
_BEATS = 4


@lru_cache(maxsize=1)
def machine() -> str:
    """Return an identifier of what shares process numbers: this boot of this host or container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot[:13]}-{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return f"{socket.gethostname()}-{uuid.getnode():x}"


@dataclass(frozen=True)
class SignOfLife:
    """What a trial's owner wrote last.

    ``at`` is its clock's time in seconds, for people; ``started`` tells its process from a later
    one with the same number.
    """

    at: float
    machine: str
    pid: int
    started: int

    def attribute(self) -> dict[str, Any]:
        """Return the system attribute."""
        return {_LEASE: [self.at, self.machine, self.pid, self.started]}


def now() -> SignOfLife:
    """Return a sign of life of this process."""
    return SignOfLife(time.time(), machine(), os.getpid(), _started(os.getpid()) or 0)


def sign_of(trial: FrozenTrial) -> SignOfLife | None:
    """Return the last sign of life of a trial, if it has one."""
    match trial.system_attrs.get(_LEASE):
        case [int() | float() as at, str() as host, int() as pid, int() as started]:
            return SignOfLife(float(at), host, pid, started)
    return None


class Heartbeat:
    """A thread that gives signs of life for the trials this process holds.

    It survives whatever the storage raises, and tries again at the next beat. A trial that was
    taken over in the meantime is let go.
    """

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._held: dict[tuple[int, int], tuple[BaseStorage, int]] = {}
        self._lock = threading.Lock()
        self._pause = threading.Event()  # never set
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()

    def hold(self, storage: BaseStorage, trial_id: int) -> None:
        """Give signs of life for a trial from now on; the first is the caller's."""
        if isinstance(storage, InMemoryStorage):
            return  # nobody else can see it
        with self._lock:
            if self._pid != os.getpid():  # a fork has no thread, and holds nothing
                self._held.clear()
                self._thread, self._pid = None, os.getpid()
            self._held[id(storage), trial_id] = storage, trial_id
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
                self._thread.start()

    def release(self, storage: BaseStorage, trial_id: int) -> None:
        """Stop giving signs of life for a trial."""
        with self._lock:
            self._held.pop((id(storage), trial_id), None)

    def holds(self, storage: BaseStorage, trial_id: int) -> bool:
        """Whether this process holds a trial."""
        return self._pid == os.getpid() and (id(storage), trial_id) in self._held

    def _run(self) -> None:
        while True:
            self._pause.wait(self._interval)
            with self._lock:
                held = list(self._held.values())
            for storage, trial_id in held:
                try:
                    beat(storage, trial_id)
                except (UpdateFinishedTrialError, KeyError):
                    self.release(storage, trial_id)
                except Exception as error:  # the thread must outlive any trouble of a database
                    _logger.warning("no sign of life this time: %s", type(error).__name__)


def beat(storage: BaseStorage, trial_id: int) -> None:
    """Give one sign of life for a running trial.

    Raises:
        UpdateFinishedTrialError: somebody has finished it.

    """
    for key, value in now().attribute().items():
        storage.set_trial_system_attr(trial_id, key, value)


@lru_cache(maxsize=8)
def heartbeat(lease: float) -> Heartbeat:
    """Return this process's heartbeat for a lease."""
    return Heartbeat(lease / _BEATS)


class Watch:
    """Notes when running trials last changed, and says which have not for a whole lease.

    Half of the lease must have been watched without a pause: while the database is away nobody
    can give a sign of life, and who has just come back must not fail everybody else.

    Args:
        lease: seconds.
        clock: seconds that never go back; a test may have its own.

    """

    def __init__(self, lease: float = LEASE, clock: Callable[[], float] = time.monotonic) -> None:
        self.lease = lease
        self._clock = clock
        self._seen: dict[int, tuple[Any, float, float]] = {}

    def stale(self, trial: FrozenTrial) -> bool:
        """Whether a running trial's owner is gone: its lease ran out, or its process is no more."""
        if trial.state != TrialState.RUNNING:
            self._seen.pop(trial._trial_id, None)
            return False
        sign = sign_of(trial)
        if sign is not None and sign.machine == machine() and not _alive(sign):
            return True
        mark = (sign, len(trial.params), len(trial.user_attrs), len(trial.intermediate_values))
        looked = self._clock()
        seen, since, before = self._seen.get(trial._trial_id, (None, looked, looked))
        if seen != mark:
            since = looked
        elif looked - before > self.lease / _BEATS:
            since = max(since, looked - self.lease / 2)
        self._seen[trial._trial_id] = mark, since, looked
        return looked - since > self.lease


def _started(pid: int) -> int | None:
    """Return when a process started, in clock ticks: 0 if it has ended, None if it is not shown."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    state, *fields = stat.rpartition(")")[2].split()  # the name before it may hold anything
    return 0 if state in "ZX" else int(fields[18])


def _alive(sign: SignOfLife) -> bool:
    """Whether the process that gave a sign of life on this machine still exists."""
    started = _started(sign.pid)
    if started is not None and sign.started:
        return started == sign.started
    try:
        os.kill(sign.pid, 0)  # which knows of processes that /proc hides from other users
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def fail(storage: BaseStorage, trial_id: int) -> bool:
    """Fail a running trial whose owner is gone; return whether nobody was faster."""
    try:
        return storage.set_trial_state_values(trial_id, state=TrialState.FAIL)
    except UpdateFinishedTrialError:
        return False
