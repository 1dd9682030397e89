"""Leases: which trials are stale, and heartbeats that no error stops."""

import math
import os
import subprocess
import sys
from dataclasses import replace

import optuna
import pytest
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState
from support.waiting import wait_until

from optuna_robustloss.distributed import lease
from optuna_robustloss.distributed.lease import (
    Heartbeat,
    LeaseKeeper,
    LeaseMonitor,
    current_heartbeat,
    fail_trial,
    heartbeat_of,
    lease_keeper,
    machine,
    record_heartbeat,
)
from optuna_robustloss.distributed.storage import open_storage

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
ELSEWHERE = Heartbeat(at=0.0, machine="another", pid=1, started=1)


def trial_with(heartbeat, trial_id=0, state=TrialState.RUNNING, **changes):
    trial = optuna.trial.create_trial(
        state=state, system_attrs=heartbeat.attribute() if heartbeat else {}
    )
    trial._trial_id = trial.number = trial_id
    for name, value in changes.items():
        setattr(trial, name, value)
    return trial


class Clock:
    def __init__(self):
        self.time = 0.0

    def __call__(self):
        return self.time


@pytest.fixture
def clock():
    return Clock()


def look_on(watch, clock, trial, until):
    """Look at a trial every second; whether it is stale at last."""
    while clock.time + 1 < until:
        clock.time += 1
        watch.is_stale(trial)
    clock.time = until
    return watch.is_stale(trial)


@pytest.mark.parametrize("heartbeat", [ELSEWHERE, None])
def test_a_lease_runs_out_when_nothing_changes(clock, heartbeat):
    watch = LeaseMonitor(lease=10.0, clock=clock)
    assert not watch.is_stale(trial_with(heartbeat))
    assert not look_on(watch, clock, trial_with(heartbeat), 10.0)
    assert look_on(watch, clock, trial_with(heartbeat), 10.1)


@pytest.mark.parametrize(
    "changed",
    [
        trial_with(replace(ELSEWHERE, at=-5.0)),  # a clock that was set back is a change, too
        trial_with(ELSEWHERE, params={"x": 1.0}),
        trial_with(ELSEWHERE, user_attrs={"a": 1}),
        trial_with(ELSEWHERE, intermediate_values={0: 1.0}),
    ],
)
def test_any_change_renews_the_lease(clock, changed):
    watch = LeaseMonitor(lease=10.0, clock=clock)
    watch.is_stale(trial_with(ELSEWHERE))
    assert not look_on(watch, clock, trial_with(ELSEWHERE), 8.0)
    assert not look_on(watch, clock, changed, 9.0)
    assert not look_on(watch, clock, changed, 19.0)
    assert look_on(watch, clock, changed, 20.0)


def test_after_a_pause_half_of_the_lease_is_watched_again(clock):
    """No worker could write a heartbeat while the database was away."""
    watch = LeaseMonitor(lease=10.0, clock=clock)
    watch.is_stale(trial_with(ELSEWHERE))
    clock.time = 1e6
    assert not watch.is_stale(trial_with(ELSEWHERE))
    assert not look_on(watch, clock, trial_with(ELSEWHERE), 1e6 + 5)
    assert look_on(watch, clock, trial_with(ELSEWHERE), 1e6 + 5.1)


def test_after_a_pause_a_trial_with_a_new_heartbeat_is_not_stale(clock):
    watch = LeaseMonitor(lease=10.0, clock=clock)
    watch.is_stale(trial_with(ELSEWHERE))
    clock.time = 1e6
    assert not watch.is_stale(trial_with(replace(ELSEWHERE, at=1e6)))


def test_clocks_of_hosts_are_not_compared(clock):
    watch = LeaseMonitor(lease=10.0, clock=clock)
    assert not watch.is_stale(trial_with(replace(ELSEWHERE, at=-1e9), 1))
    assert not watch.is_stale(trial_with(replace(ELSEWHERE, at=1e12), 2))


@pytest.mark.parametrize("state", [s for s in TrialState if s.name in ("FAIL", "PRUNED")])
def test_a_finished_trial_is_not_stale(clock, state):
    watch = LeaseMonitor(lease=10.0, clock=clock)
    watch.is_stale(trial_with(ELSEWHERE))
    clock.time = 99.0
    assert not watch.is_stale(trial_with(ELSEWHERE, state=state))


def test_this_process_is_alive(clock):
    assert not LeaseMonitor(10.0, clock).is_stale(trial_with(current_heartbeat()))


@linux
def test_a_process_that_has_ended_is_noticed_at_once(clock):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = lease._started(child.pid)
    trial = trial_with(Heartbeat(0.0, machine(), child.pid, started))
    watch = LeaseMonitor(10.0, clock)
    assert not watch.is_stale(trial)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # a zombie now: not reaped yet
    assert watch.is_stale(trial)
    child.communicate()
    assert watch.is_stale(trial)


@linux
def test_a_later_process_with_the_same_number_is_another_one(clock):
    reused = replace(current_heartbeat(), started=current_heartbeat().started + 1)
    assert LeaseMonitor(10.0, clock).is_stale(trial_with(reused))


def test_where_start_times_are_unknown_the_number_decides(clock, monkeypatch):
    mine = replace(current_heartbeat(), started=0)
    assert not LeaseMonitor(10.0, clock).is_stale(trial_with(mine))
    killed = []

    def kill(pid, number):
        killed.append((pid, number))
        raise ProcessLookupError

    monkeypatch.setattr(os, "kill", kill)
    assert LeaseMonitor(10.0, clock).is_stale(trial_with(mine))
    assert killed == [(os.getpid(), 0)]  # asks only, and never harms


@pytest.mark.parametrize(
    "value",
    [
        *(None, 0, [], "text", {"at": 1}, [1.0, "m", 1], [1.0, "m", "1", 1], [1.0, "m", 1, 1, 1]),
        *([10**400, "m", 1, 1], [math.nan, "m", 1, 1], [math.inf, "m", 1, 1], [[1], "m", 1, 1]),
        *([1.0, 5, 1, 1], [1.0, "m", 2**70, 1], [1.0, "m", 0, 1], [1.0, "m", -1, 1]),
        *([1.0, "m", 1.5, 1], [1.0, "m", 1, 2**70], [1.0, "m", 1, -1], ["x" * 10**6] * 4),
    ],
)
def test_a_damaged_heartbeat_is_a_lease_that_expires(clock, caplog, value):
    """Also where it names this machine; one warning says which attribute of which trial it is."""
    if isinstance(value, list) and value[1:2] == ["m"]:
        value = [value[0], machine(), *value[2:]]
    lease._warn_of_damage.cache_clear()
    (key,) = ELSEWHERE.attribute()
    trial = trial_with(None, 7, system_attrs={key: value})
    assert heartbeat_of(trial) is None
    assert lease.has_lease(trial)
    watch = LeaseMonitor(10.0, clock)
    assert not watch.is_stale(trial)
    assert not look_on(watch, clock, trial, 10.0)
    assert look_on(watch, clock, trial, 10.1)
    [message] = caplog.messages
    assert message.startswith(f"trial 7: the system attribute '{key}' is no heartbeat")
    assert len(message) < 400


def test_a_trial_with_a_damaged_heartbeat_is_not_failed_as_one_without(tmp_path):
    study = optuna.create_study(storage=open_storage(f"sqlite:///{tmp_path}/s.db", create=True))
    trial_id = study._storage.create_new_trial(study._study_id)
    (key,) = ELSEWHERE.attribute()
    study._storage.set_trial_system_attr(trial_id, key, [0, "m", 2**70, 0])
    lease.fail_orphaned_trials(study)
    assert study.trials[0].state == TrialState.RUNNING
    record_heartbeat(study._storage, trial_id)  # its worker repairs it
    assert heartbeat_of(study.trials[0]).pid == os.getpid()


class FaultyStorage(InMemoryStorage):
    """Not Optuna's own class by type, so that it gets heartbeats; raises what is in ``faults``."""

    def __init__(self):
        super().__init__()
        self.faults = []

    def set_trial_system_attr(self, trial_id, key, value):
        if self.faults:
            raise self.faults.pop()
        super().set_trial_system_attr(trial_id, key, value)


def wait_for_heartbeat(storage, trial_id):
    before = heartbeat_of(storage.get_trial(trial_id))
    return wait_until(lambda: (now := heartbeat_of(storage.get_trial(trial_id))) != before and now)


@pytest.fixture
def running(monkeypatch):
    monkeypatch.setattr(lease, "InMemoryStorage", type("Nothing", (), {}))
    storage = FaultyStorage()
    study = optuna.create_study(storage=storage)
    trial_id = storage.create_new_trial(study._study_id)
    beats = LeaseKeeper(0.01)
    beats.hold(storage, trial_id)
    yield storage, trial_id, beats
    beats.release(storage, trial_id)


def test_a_heartbeat_is_rewritten(running):
    storage, trial_id, beats = running
    first = wait_for_heartbeat(storage, trial_id)
    assert (first.pid, first.machine) == (os.getpid(), machine())
    assert wait_for_heartbeat(storage, trial_id).at > first.at
    assert beats.holds(storage, trial_id)


@pytest.mark.parametrize("error", [OSError("lost"), RuntimeError("boom"), MemoryError()])
def test_a_heartbeat_survives_an_error_of_the_storage(running, error):
    storage, trial_id, _ = running
    storage.faults.append(error)
    wait_until(lambda: not storage.faults)
    wait_for_heartbeat(storage, trial_id)


def test_a_finished_trial_gets_no_more_heartbeats(running):
    storage, trial_id, beats = running
    assert fail_trial(storage, trial_id)
    wait_until(lambda: not beats.holds(storage, trial_id))


def test_a_released_trial_gets_no_more_heartbeats(running):
    storage, trial_id, beats = running
    other = storage.create_new_trial(0)
    beats.hold(storage, other)
    wait_for_heartbeat(storage, trial_id)
    beats.release(storage, trial_id)
    assert not beats.holds(storage, trial_id)
    for _ in range(2):  # the first round may have begun before the release
        wait_for_heartbeat(storage, other)
    before = heartbeat_of(storage.get_trial(trial_id))
    for _ in range(2):
        wait_for_heartbeat(storage, other)
    assert heartbeat_of(storage.get_trial(trial_id)) == before
    beats.release(storage, other)


def test_in_memory_no_heartbeat_is_needed():
    storage = InMemoryStorage()
    study = optuna.create_study(storage=storage)
    beats = LeaseKeeper(0.01)
    beats.hold(storage, storage.create_new_trial(study._study_id))
    assert not beats._thread.is_alive()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_holds_nothing_of_its_parent(tmp_path):
    storage = open_storage(f"sqlite:///{tmp_path}/s.db", create=True)
    trial_id = storage.create_new_trial(optuna.create_study(storage=storage)._study_id)
    beats = LeaseKeeper(99.0)
    beats.hold(storage, trial_id)
    assert beats.holds(storage, trial_id)
    pid = os.fork()
    if pid == 0:
        os._exit(int(beats.holds(storage, trial_id)))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_only_the_first_to_fail_a_trial_did_it(tmp_path):
    storage = open_storage(f"sqlite:///{tmp_path}/s.db", create=True)
    trial_id = storage.create_new_trial(optuna.create_study(storage=storage)._study_id)
    record_heartbeat(storage, trial_id)
    assert fail_trial(storage, trial_id)
    assert not fail_trial(storage, trial_id)
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        record_heartbeat(storage, trial_id)


def test_one_heartbeat_per_process_and_lease():
    assert lease_keeper(120.0) is lease_keeper(120.0)
    assert lease_keeper(120.0) is not lease_keeper(60.0)
