"""Leases of running trials: heartbeats that renew them, and stale trials that are failed.

A trial's worker rewrites one system attribute, the heartbeat, several times per lease. Clocks of
hosts are never compared: a monitor notes by its own clock when it last saw the attribute change. So
hosts with wrong clocks do not fail each other's trials, and every Optuna storage serves.
"""

from __future__ import annotations

import logging
import os
import reprlib
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

_LEASE = "generational-cma:lease"
_logger = logging.getLogger(__name__)

#: Seconds without a heartbeat after which a trial is stale.
LEASE = 120.0
#: Heartbeats per lease, so that a few may be lost.
_BEATS_PER_LEASE = 4
#: Times of heartbeats are nearer to 1970 than so many seconds; others are damaged.
_LATEST = 1e13
#: Seconds that a trial may be without a heartbeat after it was created.
_NEWBORN = 1.0


@lru_cache(maxsize=1)
def machine() -> str:
    """Return an identifier of this boot of this host or container, which share process numbers."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot[:13]}-{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return f"{socket.gethostname()}-{uuid.getnode():x}"


@dataclass(frozen=True)
class Heartbeat:
    """The last heartbeat of a trial's worker.

    ``at`` is the time of the worker's clock in seconds, for display; ``started`` tells its process
    from a later one with the same number.
    """

    at: float
    machine: str
    pid: int
    started: int

    def attribute(self) -> dict[str, Any]:
        """Return the system attribute."""
        return {_LEASE: [self.at, self.machine, self.pid, self.started]}


def current_heartbeat() -> Heartbeat:
    """Return a heartbeat of this process."""
    return Heartbeat(time.time(), machine(), os.getpid(), _started(os.getpid()) or 0)


def heartbeat_of(trial: FrozenTrial) -> Heartbeat | None:
    """Return the last heartbeat of a trial; None, with a warning, if it is damaged.

    Such a trial has a lease, which expires unless its worker writes the next heartbeat.
    """
    if not has_lease(trial):
        return None
    value = trial.system_attrs[_LEASE]
    match value:
        case [int() | float() as at, str() as host, int() as pid, int() as started] if (
            abs(at) < _LATEST and 0 < pid < 2**31 and 0 <= started < 2**63
        ):
            return Heartbeat(float(at), host, pid, started)
    _warn_of_damage(trial.number, reprlib.repr(value))
    return None


def has_lease(trial: FrozenTrial) -> bool:
    """Return whether a worker has ever written a heartbeat of a trial."""
    return _LEASE in trial.system_attrs


@lru_cache(maxsize=1024)  # once for each value
def _warn_of_damage(number: int, value: str) -> None:
    _logger.warning(
        "trial %d: the system attribute %r is no heartbeat, its lease expires: %s",
        number,
        _LEASE,
        value,
    )


def record_heartbeat(storage: BaseStorage, trial_id: int) -> None:
    """Renew the lease of a running trial.

    Raises:
        UpdateFinishedTrialError: another worker has finished it.

    """
    for key, value in current_heartbeat().attribute().items():
        storage.set_trial_system_attr(trial_id, key, value)


class LeaseKeeper:
    """A thread that renews the leases of the trials that this process holds.

    An error of the storage does not end it. A trial that another worker finished is released.

    Args:
        interval: seconds between two heartbeats.

    """

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._held: dict[tuple[int, int], tuple[BaseStorage, int]] = {}
        self._lock = threading.Lock()
        self._pause = threading.Event()  # never set
        self._thread = threading.Thread()  # not started

    def hold(self, storage: BaseStorage, trial_id: int) -> None:
        """Renew the lease of a trial from now on; the caller writes the first heartbeat."""
        if isinstance(storage, InMemoryStorage):
            return  # no other process sees it
        with self._lock:
            if not self._thread.is_alive():  # at first, and in a fork, which holds nothing
                self._held.clear()
                self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
                self._thread.start()
            self._held[id(storage), trial_id] = storage, trial_id

    def release(self, storage: BaseStorage, trial_id: int) -> None:
        """Stop renewing the lease of a trial."""
        with self._lock:
            self._held.pop((id(storage), trial_id), None)

    def holds(self, storage: BaseStorage, trial_id: int) -> bool:
        """Whether this process holds a trial."""
        return self._thread.is_alive() and (id(storage), trial_id) in self._held

    def _run(self) -> None:
        while True:
            self._pause.wait(self._interval)
            with self._lock:
                held = list(self._held.values())
            for storage, trial_id in held:
                try:
                    record_heartbeat(storage, trial_id)
                except (UpdateFinishedTrialError, KeyError):
                    self.release(storage, trial_id)
                except Exception as error:  # the thread outlives every failure of a database
                    explained = isinstance(error, StorageInternalError)  # and has no password
                    reason = str(error) if explained else type(error).__name__
                    _logger.warning("a heartbeat failed: %s", reason)


@lru_cache(maxsize=8)
def lease_keeper(lease: float) -> LeaseKeeper:
    """Return this process's keeper of leases of so many seconds."""
    return LeaseKeeper(lease / _BEATS_PER_LEASE)


class LeaseMonitor:
    """Notes when running trials last changed, and which have not for a whole lease.

    Half of the lease must have been watched without a pause: while the database is unavailable no
    worker can renew a lease, and the first one to return must not fail the others' trials.

    Args:
        lease: seconds.
        clock: monotonic time in seconds; replaced in tests.

    """

    def __init__(self, lease: float = LEASE, clock: Callable[[], float] = time.monotonic) -> None:
        self.lease = lease
        self._clock = clock
        self._seen: dict[int, tuple[Any, float, float]] = {}

    def is_stale(self, trial: FrozenTrial) -> bool:
        """Return whether a running trial's lease has expired, or its process has ended."""
        if trial.state != TrialState.RUNNING:
            self._seen.pop(trial._trial_id, None)
            return False
        beat = heartbeat_of(trial)
        if beat is not None and beat.machine == machine() and not _is_alive(beat):
            return True
        mark = (beat, len(trial.params), len(trial.user_attrs), len(trial.intermediate_values))
        looked = self._clock()
        seen, since, before = self._seen.get(trial._trial_id, (None, looked, looked))
        if seen != mark:
            since = looked
        elif looked - before > self.lease / _BEATS_PER_LEASE:
            since = max(since, looked - self.lease / 2)
        self._seen[trial._trial_id] = mark, since, looked
        return looked - since > self.lease


def _started(pid: int) -> int | None:
    """Return a process's start in clock ticks: 0 if it has ended, None if it is not shown."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    state, *fields = stat.rpartition(")")[2].split()  # the name before it may hold anything
    return 0 if state in "ZX" else int(fields[18])


def _is_alive(beat: Heartbeat) -> bool:
    """Return whether the process that sent a heartbeat from this machine still exists."""
    started = _started(beat.pid)
    if started is not None and beat.started:
        return started == beat.started
    try:
        os.kill(beat.pid, 0)  # which knows of processes that /proc hides from other users
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def fail_trial(storage: BaseStorage, trial_id: int) -> bool:
    """Fail a running trial; return False if another process has finished it."""
    try:
        return storage.set_trial_state_values(trial_id, state=TrialState.FAIL)
    except UpdateFinishedTrialError:
        return False


def fail_stale_trials(
    storage: BaseStorage, running: Iterable[FrozenTrial], monitor: LeaseMonitor
) -> list[FrozenTrial]:
    """Fail the stale ones of ``running`` trials of other processes; return the rest."""
    alive = []
    for trial in running:
        if not monitor.is_stale(trial):
            alive.append(trial)
        elif fail_trial(storage, trial._trial_id):
            _logger.warning(
                "trial %d is stale: its lease has expired or its process has ended; it is failed",
                trial.number,
            )
    return alive


def fail_orphaned_trials(study: Study) -> None:
    """Fail the running trials of worker processes that have ended on this machine.

    A trial that has just been created has no heartbeat yet, and may belong to another host: it
    gets a second to show one.
    """
    monitor, begin = LeaseMonitor(), time.monotonic()
    while True:
        late = time.monotonic() - begin > _NEWBORN
        running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        alive = fail_stale_trials(study._storage, running, monitor)
        newborn = [t for t in alive if not (has_lease(t) or t.params or t.user_attrs)]
        if late:
            for trial in newborn:
                fail_trial(study._storage, trial._trial_id)
        if late or not newborn:
            return
        time.sleep(_NEWBORN / 10)
