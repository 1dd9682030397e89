"""The iterator of evaluations: what it yields, and how candidates end."""

import math

import pytest
import torch
from torch import nn

from optuna_robustloss.training.train import train
from training.tiny import (
    ADAM,
    CPU,
    SGD,
    Loss,
    bitwise,
    closed,
    digits,
    diverging,
    taylor,
    together,
    trained,
)

pytestmark = pytest.mark.integration  # trains networks


def started(task, criteria, *, backend="batch", **options):
    return train(
        task, criteria, seed=5, evaluate_on=task.validation, device=CPU, backend=backend, **options
    )


# Evaluations


@pytest.mark.parametrize("backend", ["separate", "batch"])
def test_every_item_holds_the_evaluations_of_all_candidates_at_a_step(backend):
    training = started(digits(**ADAM), closed(), backend=backend, evaluate_at=[0, 5, 2, 5, 12, 40])
    assert (training.step, training.alive) == (0, [0, 1, 2])
    items, steps = [], []
    for evaluations in training:
        items.append(evaluations)
        steps.append(training.step)
    assert steps == [2, 5, 12]
    for step, item in zip(steps, items, strict=True):
        assert list(item) == [0, 1, 2]
        assert {(e.step, e.epoch, e.also) for e in item.values()} == {(step, step / 4, ())}
    for index, result in enumerate(training.finish()):
        assert list(result.curve) == [item[index] for item in items]
        assert result.complete
        assert result.model is None


def test_further_images_are_evaluated_at_the_same_steps():
    task = digits(**ADAM)
    parts = (task.test, task.train)
    runs = together(task, closed(), evaluate_at=[4], evaluate_also_on=parts)
    apart = [together(task, closed(), evaluate_on=part, evaluate_at=[4]) for part in parts]
    for index, run in enumerate(runs):
        for position, evaluation in enumerate(run.curve):
            assert evaluation.also == tuple(r[index].curve[position].accuracy for r in apart)


def test_an_iteration_goes_on_where_another_was_left():
    task = digits(**ADAM)
    training = started(task, closed(), evaluate_at=[2, 5], keep_models=True)
    next(iter(training))
    assert [training.step for _ in training] == [5, 12]
    usual = together(task, closed(), evaluate_at=[2, 5])
    assert all(map(bitwise, training.finish(), usual))
    assert all(map(bitwise, training.finish(), usual))


def test_no_losses_have_no_results():
    training = started(digits(), [], backend=None)
    assert list(training) == training.finish() == []


@pytest.mark.parametrize("keep", [True, False])
def test_networks_are_kept_where_they_are_asked_for(keep):
    task = digits(**ADAM)
    runs = together(task, closed(), keep_models=keep)
    assert [run.model is not None for run in runs] == [keep] * 3
    if keep:
        assert runs[0].model is not runs[1].model
        assert bitwise(trained(task, closed()[0]), together(task, closed()[:1], backend=None)[0])
        assert runs[0].model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
        assert next(runs[0].model.parameters()).device == CPU


@pytest.mark.parametrize("backend", ["separate", "batch"])
def test_an_interrupt_leaves_the_settings_of_pytorch_as_they_were(backend):
    def interrupted(logits, labels):
        raise KeyboardInterrupt

    torch.manual_seed(3)
    before = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        together(digits(**ADAM), [taylor(), Loss(interrupted)], backend=backend)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.tensor(1e-40) * 1.0 > 0  # denormals are not flushed


# Stopping


@pytest.mark.parametrize("backend", ["separate", "batch"])
def test_stopped_candidates_end_where_they_are(backend):
    criteria = [taylor(eta=eta) for eta in (2.0, 3.0, 4.0, 5.0, 6.0)]
    training = started(digits(**ADAM), criteria, backend=backend, evaluate_at=[3, 5, 9])
    stop, seen = {3: [4, 1], 5: [1], 9: {3}, 12: [0]}, []
    for evaluations in training:
        seen.append(list(evaluations))
        training.stop(stop[training.step])
    assert seen == [[0, 1, 2, 3, 4], [0, 2, 3], [0, 2, 3], [0, 2]]
    results = training.finish()
    assert training.alive == []
    assert [result.curve[-1].step for result in results] == [12, 3, 12, 9, 3]
    assert [result.stopped for result in results] == [True, True, False, True, True]
    assert [result.complete for result in results] == [False, False, True, False, False]


def test_training_ends_when_all_are_stopped():
    losses = [Loss(), Loss()]
    runs = together(digits(), losses, stop={3: [0, 1, 1]}, evaluate_at=[5])
    assert [[p.step for p in run.curve] for run in runs] == [[3]] * 2
    assert all(run.stopped and run.model is not None for run in runs)
    assert [len(loss.labels) for loss in losses] == [3, 3]


# Divergence


@pytest.mark.parametrize("kind", ["nan", "overflow", "infinite"])
@pytest.mark.parametrize("evaluate_at", [(), range(13)], ids=["last", "each"])
def test_a_loss_that_is_not_finite_ends_within_the_epoch(kind, evaluate_at):
    loss = diverging(kind)
    run = trained(digits(epochs=50), loss, evaluate_at=evaluate_at)
    assert run.diverged
    assert not run.complete
    assert 0 <= run.curve[-1].accuracy <= 1
    assert len(loss.labels) == run.curve[-1].step <= 4
    assert len({point.step for point in run.curve}) == len(run.curve)


def test_a_huge_learning_rate_diverges():
    run = trained(digits(lr=1e30, epochs=50))
    assert run.diverged
    assert 0 <= run.curve[-1].accuracy <= 1
    assert run.curve[-1].step <= 8


def test_divergence_between_two_evaluations_adds_none_to_the_others():
    task = digits(epochs=4, **SGD)
    training = started(task, [diverging(), nn.CrossEntropyLoss()])
    (evaluations,) = training
    assert {index: e.step for index, e in evaluations.items()} == {0: 4, 1: 16}
    assert [[p.step for p in run.curve] for run in training.finish()] == [[4], [16]]


def test_a_diverged_candidate_cannot_be_stopped():
    training = started(digits(), [diverging(), taylor()], evaluate_at=[6])
    next(iter(training))
    assert training.alive == [1]
    training.stop([0])
    assert [(run.diverged, run.stopped) for run in training.finish()] == [
        (True, False),
        (False, False),
    ]


def test_training_ends_when_all_have_diverged():
    losses = [diverging() for _ in range(3)]
    runs = together(digits(epochs=4, **SGD), losses, evaluate_at=[6])
    assert [run.diverged for run in runs] == [True] * 3
    assert [len(loss.labels) for loss in losses] == [4] * 3
    assert all(math.isfinite(run.curve[-1].accuracy) for run in runs)
