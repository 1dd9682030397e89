import math

import pytest
from torch.nn import functional as F

from optuna_robustloss.training.loop import hopeless_below
from training.tiny import Loss, digits, never_the_label, trained

# Divergence


@pytest.mark.parametrize(
    "broken",
    [
        lambda z, y: z.sum() * math.nan,
        lambda z, y: z.square().sum() * 1e38,
        lambda z, y: F.cross_entropy(z, y) + math.inf,  # the gradients stay finite
    ],
    ids=["nan", "overflow", "inf"],
)
@pytest.mark.parametrize("watch_at", [(), range(13)], ids=["last", "each"])
def test_a_loss_that_is_not_finite_ends_the_run(broken, watch_at):
    told = []
    loss = Loss(broken)
    run = trained(digits(epochs=50), loss, watch_at=watch_at, observe=told.append)
    assert run.diverged
    assert not run.hopeless
    assert 0 <= run.curve[-1].accuracy <= 1
    assert len(loss.labels) == run.curve[-1].step <= 4  # within the first epoch
    assert told == list(run.curve)
    assert len({point.step for point in run.curve}) == len(run.curve)


def test_a_huge_learning_rate_ends_the_run():
    run = trained(digits(lr=1e30, epochs=50))
    assert run.diverged
    assert 0 <= run.curve[-1].accuracy <= 1
    assert run.curve[-1].step <= 8


# Runs near chance


@pytest.mark.parametrize(
    ("num_classes", "accuracy"), [(2, 0.55), (3, 0.3833), (10, 0.15), (100, 0.015)]
)
def test_a_network_is_hopeless_below_one_and_a_half_times_chance(num_classes, accuracy):
    assert hopeless_below(num_classes) == pytest.approx(accuracy, abs=1e-4)


@pytest.mark.parametrize(("epochs", "stops_at"), [(25, 7), (26, 8), (50, 14), (57, 16), (75, 21)])
def test_a_hopeless_run_is_stopped_after_7_percent_of_its_steps_rounded_up(epochs, stops_at):
    loss = Loss(never_the_label)
    run = trained(
        digits(lr=0.5, epochs=epochs), loss, stop_at_chance_after=0.07
    )  # 4 steps an epoch
    assert len(loss.labels) == stops_at
    assert run.hopeless
    assert not run.diverged
    assert [point.step for point in run.curve] == [stops_at]


def test_a_hopeless_run_goes_on_if_it_must():
    run = trained(digits(lr=0.5, epochs=5), Loss(never_the_label))
    assert not run.hopeless
    assert [point.step for point in run.curve] == [20]
    assert run.curve[-1].accuracy < 0.1


def test_a_run_that_learns_is_not_given_up():
    run = trained(digits(train=800, epochs=4), stop_at_chance_after=0.07)
    assert not run.hopeless
    assert [point.step for point in run.curve] == [7, 100]
