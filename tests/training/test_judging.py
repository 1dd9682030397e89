"""Who watches candidates on their way, who stops them, and when."""

import copy
import math

import pytest
import torch
from torch import nn

from training.test_population_loop import ADAM, SGD, bitwise, closed, hostile, taylor, together
from training.tiny import CPU, Loss, digits, never_the_label, trained

# Observers


def test_each_measured_point_is_told_once_to_each_candidate_in_order():
    task, told = digits(**ADAM), []
    runs = together(
        task,
        closed(),
        watch_at=[0, 5, 2, 5, 12, 40],
        judge_at=[7],
        judge=lambda alive: [],
        stop_at_chance_after=0.25,
        observe=lambda index, point: told.append((index, point)),
    )
    for index, run in enumerate(runs):
        assert [point for i, point in told if i == index] == list(run.curve)
        assert [point.step for point in run.curve] == [2, 3, 5, 7, 12]
        assert [point.epoch for point in run.curve] == [0.5, 0.75, 1.25, 1.75, 3.0]
    assert [point.step for _, point in told] == sorted(point.step for _, point in told)


def test_further_images_are_watched_at_the_same_steps():
    task = digits(**ADAM)
    parts = (task.test, task.train)
    runs = together(task, closed(), watch_at=[4], also_watch=parts)
    apart = [together(task, closed(), watch=part, watch_at=[4]) for part in parts]
    for index, run in enumerate(runs):
        for moment, point in enumerate(run.curve):
            assert point.also == tuple(r[index].curve[moment].accuracy for r in apart)
    assert together(task, closed())[0].curve[-1].also == ()


def test_what_one_observer_raises_is_kept_and_what_it_would_have_been_told_is_not():
    def observe(index, point):
        if index == 1:
            raise error

    error = RuntimeError("told enough")
    runs = together(digits(**ADAM), closed(), watch_at=[2, 4], observe=observe)
    assert [run.error for run in runs] == [None, error, None]
    assert [point.step for point in runs[1].curve] == [2]
    assert [run.complete for run in runs] == [True, False, True]
    assert (runs[1].diverged, runs[1].hopeless, runs[1].dropped) == (False, False, False)


@pytest.mark.parametrize("backend", ["separate", "batch"])
def test_interrupts_pass_and_leave_no_trace(backend):
    def observe(index, point):
        if index == 1:
            raise KeyboardInterrupt

    torch.manual_seed(3)
    before = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        together(digits(**ADAM), closed(), watch_at=[2], observe=observe, backend=backend)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.tensor(1e-40) * 1.0 > 0  # small numbers count again


def test_a_candidate_that_diverges_and_whose_observer_raises_has_the_error():
    def observe(index, point):
        raise ValueError("diverged?")

    for watch_at in ((), [4]):
        run = together(digits(), [hostile("nan")], watch_at=watch_at, observe=observe)[0]
        assert str(run.error) == "diverged?"
        assert not run.diverged


def test_who_diverges_between_two_measurements_leaves_no_point_with_the_others():
    task = digits(epochs=4, **SGD)
    told = []
    runs = together(
        task,
        [hostile("nan"), nn.CrossEntropyLoss()],
        backend="batch",
        observe=lambda index, point: told.append((index, point.step)),
    )
    assert told == [(0, 4), (1, 16)]
    assert [[p.step for p in run.curve] for run in runs] == [[4], [16]]


def test_all_may_end_at_once():
    task = digits(epochs=4, **SGD)

    def observe(index, point):
        raise ValueError(str(index))

    for step in (4, 6):  # at the end of an epoch, and amid one
        runs = together(task, closed(), backend="batch", watch_at=[step], observe=observe)
        assert [str(run.error) for run in runs] == ["0", "1", "2"]
    runs = together(task, [copy.deepcopy(hostile("nan")) for _ in range(3)], backend="batch")
    assert [run.diverged for run in runs] == [True] * 3


# Rungs


class Judge:
    """Stops what a table says, and keeps who it was asked about."""

    def __init__(self, *verdicts):
        self.verdicts, self.asked = list(verdicts), []

    def __call__(self, alive):
        self.asked.append(list(alive))
        return self.verdicts.pop(0) if self.verdicts else []


@pytest.mark.parametrize("backend", ["separate", "batch"])
def test_a_judge_is_asked_once_at_each_rung_about_those_that_are_left(backend):
    judge = Judge([4, 1], [], {3})
    criteria = [taylor(eta=eta) for eta in (2.0, 3.0, 4.0, 5.0, 6.0)]
    runs = together(
        digits(**ADAM), criteria, backend=backend, judge=judge, judge_at=[9, 3, 3, 5, 0, -1, 12, 99]
    )
    assert judge.asked == [[0, 1, 2, 3, 4], [0, 2, 3], [0, 2, 3]]
    assert [run.curve[-1].step for run in runs] == [12, 3, 12, 9, 3]
    assert [run.dropped for run in runs] == [False, True, False, True, True]
    assert [run.complete for run in runs] == [True, False, True, False, False]


@pytest.mark.parametrize("everything", [[0, 1, 2], (2, 1, 0, 0)])
def test_a_judge_may_stop_everything_and_is_not_asked_again(everything):
    judge = Judge(everything)
    runs = together(digits(**ADAM), closed(), judge=judge, judge_at=[3, 5])
    assert judge.asked == [[0, 1, 2]]
    assert [[p.step for p in run.curve] for run in runs] == [[3]] * 3
    assert all(run.dropped and run.model is not None for run in runs)


def test_nobody_is_judged_when_all_have_ended_by_themselves():
    judge = Judge()
    runs = together(digits(), [hostile("nan")] * 2, backend="batch", judge=judge, judge_at=[6])
    assert [run.diverged for run in runs] == [True, True]
    assert judge.asked == []


def test_the_hopeless_go_before_the_judge_comes_at_the_same_step():
    judge = Judge([0])
    hopeless = Loss(never_the_label)
    task = digits(train=800, epochs=2, **ADAM)
    runs = together(
        task,
        [taylor(), hopeless, taylor(eta=5.0)],
        judge=judge,
        judge_at=[25],
        stop_at_chance_after=0.5,
    )
    assert judge.asked == [[0, 2]]
    assert [run.hopeless for run in runs] == [False, True, False]
    assert [run.dropped for run in runs] == [True, False, False]
    assert [p.step for p in runs[2].curve] == [25, 50]
    assert len(hopeless.labels) == 25


def test_rungs_without_a_judge_are_no_rungs():
    runs = together(digits(**ADAM), closed(), judge_at=[3])
    assert [point.step for point in runs[0].curve] == [12]


def test_a_judge_that_raises_is_heard():
    def judge(alive):
        raise ValueError("undecided")

    with pytest.raises(ValueError, match="undecided"):
        together(digits(**ADAM), closed(), judge=judge, judge_at=[3])


@pytest.mark.parametrize(("share", "epochs"), [(0.07, 25), (0.07, 26), (0.3, 25), (1e-9, 2)])
@pytest.mark.parametrize("backend", ["separate", "batch"])
def test_all_are_checked_at_the_share_of_their_steps_rounded_up(share, epochs, backend):
    losses = [Loss(never_the_label), Loss(never_the_label)]
    runs = together(
        digits(lr=0.5, epochs=epochs), losses, backend=backend, stop_at_chance_after=share
    )
    at = math.ceil(round(share * 4 * epochs, 6)) or 1
    assert [p.step for run in runs for p in run.curve][:1] == [at]
    for run, loss in zip(runs, losses, strict=True):
        assert run.hopeless is (run.curve[0].accuracy < 0.15)
        assert len(loss.labels) == (at if run.hopeless else 4 * epochs)


# One network is a population of one


def test_no_losses_are_no_runs():
    assert together(digits(), []) == []


@pytest.mark.parametrize("keep", [True, False])
def test_networks_are_kept_where_they_are_asked_for(keep):
    task = digits(**ADAM)
    runs = together(task, closed(), backend="batch", models=keep)
    assert [run.model is not None for run in runs] == [keep] * 3
    if keep:
        assert runs[0].model is not runs[1].model
        assert bitwise(trained(task, closed()[0]), together(task, closed()[:1], backend=None)[0])
        assert runs[0].model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
        assert next(runs[0].model.parameters()).device == CPU
