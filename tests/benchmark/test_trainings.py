"""Runs of a benchmark that are trained together: horizons, schedules, switches, scales."""

import pytest

from benchmark.test_study import RUNS, SPEC, VALUES
from optuna_robustloss.benchmark.methods import make_criterion
from optuna_robustloss.benchmark.spec import BenchmarkSpec
from optuna_robustloss.benchmark.trainings import Options, prepare_run, train_runs

pytestmark = pytest.mark.integration  # trains networks


def test_runs_of_two_tasks_are_not_trained_together():
    with pytest.raises(ValueError, match="share task, seed, horizon and schedule"):
        train_runs(SPEC, [RUNS[0], RUNS[-1]])


def test_a_longer_horizon_and_another_schedule():
    runs = SPEC.runs(horizons=[3], schedules=["cosine"])[:1]
    (result,) = train_runs(SPEC, runs)
    assert [m.epoch for m in result.curve] == [1, 2, 3, 4, 5, 6]
    sums = [m.cumulative_lr for m in result.curve]
    assert sums[-1] == pytest.approx(0.01 * (12 + 1) / 2)  # a cosine's mean, first step whole
    assert sums[0] > sums[-1] - sums[-2]


def test_a_switch_at_steps_times_lr_is_the_same_step_at_every_horizon():
    (task, _) = prepare_run(SPEC, RUNS[0], Options())
    usual, longer = (
        make_criterion("ce-then-mae@0.02", task, 0.5, epochs=epochs).criterion for epochs in (3, 6)
    )
    assert usual.switch * 3 * 2 == pytest.approx(2)  # steps of lr .01
    assert longer.switch * 6 * 2 == pytest.approx(2)
    assert usual.width == pytest.approx(usual.switch)
    with pytest.raises(
        ValueError, match=r"ends at a cumulative learning rate of 10, the training at 0\.06"
    ):
        make_criterion("ce-then-mae@5", task, epochs=3)


def test_under_adam_a_scale_is_one_of_the_learning_rate():
    """The scale of a loss is divided out there: all scales would be one training."""
    recipe = {"optimizer": "adam", "lr": 0.003}
    adam = BenchmarkSpec.from_values(VALUES | {"recipe": VALUES["recipe"] | recipe}, "tiny.yaml")
    runs = [run for run in adam.runs(scales=[1, 0.1]) if (run.seed, run.method) == (0, "gce")][:2]
    usual, low = train_runs(adam, runs)
    slow = adam.model_copy(update={"recipe": adam.recipe | {"lr": 0.0003}})
    slow = BenchmarkSpec.from_values(slow.model_dump(mode="json"), "tiny.yaml")
    (expected,) = train_runs(slow, runs[:1])
    assert [e.test for e in low.curve] == [e.test for e in expected.curve]
    assert low.run.scale == 0.1
    assert low.curve != usual.curve
    # Times the scale it is the cumulative learning rate, as for other optimisers.
    assert [e.cumulative_lr for e in low.curve] == [e.cumulative_lr for e in usual.curve]
