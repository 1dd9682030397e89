"""How the trials, candidates and devices of a command are divided among its workers."""

import pytest
import torch
from support.small import small_spec

from optuna_robustloss.cli.worker_pool import WorkerPool
from optuna_robustloss.search.objective import NoisyLabelObjective
from optuna_robustloss.search.worker_job import SearchJob, candidates_each, devices_each, shares


@pytest.mark.parametrize(("popsize", "workers"), [(12, 1), (12, 2), (12, 5), (5, 2), (4, 6)])
def test_workers_share_a_generation(popsize, workers):
    each = candidates_each(small_spec(popsize=popsize), workers)
    assert len(each) == workers
    assert max(each) == -(-popsize // workers)
    assert sum(each) == max(popsize, workers)


@pytest.mark.parametrize("sampler", ["tpe", "gp", "optuna-cmaes"])
def test_a_sampler_that_learns_from_each_trial_is_asked_for_one(sampler):
    assert candidates_each(small_spec(sampler=sampler), 2) == [1, 1]


def test_trials_of_a_command_are_shared_exactly():
    assert shares(7, 3) == [3, 2, 2]
    objective = NoisyLabelObjective(small_spec())
    for pool, own in [(WorkerPool(3, 2), [1, 1]), (WorkerPool(2), [None, None])]:
        jobs = pool.jobs("small", objective, "sqlite:///s")  # no job without a trial
        assert [job.n_trials for job in jobs] == own


@pytest.mark.parametrize(
    ("given", "count", "expected"),
    [
        (None, 0, [None] * 3),
        (None, 1, [None] * 3),
        (None, 2, ["cuda:0", "cuda:1", "cuda:0"]),
        ("cpu", 2, ["cpu"] * 3),
    ],
)
def test_workers_take_cuda_devices_in_turn(given, count, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    device = torch.device(given) if given else None
    assert [d if d is None else str(d) for d in devices_each(device, 3)] == expected


def test_a_job_does_not_show_its_storage():
    assert "secret" not in repr(SearchJob("postgresql://me:secret@host/db", "small", set))
