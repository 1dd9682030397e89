"""A search over losses with an adaptive switch: its parameters, its errors, its shipped study."""

from pathlib import Path

import optuna
import pytest

from optuna_robustloss import StudySpec, suggest_taylor_loss
from optuna_robustloss.search.parameters import AdaptiveParameters
from optuna_robustloss.search.space import SearchSpace, SpaceOptions

STUDIES = Path(__file__).parents[2] / "studies"
SCE = {"start": "sce", "eta": 4.0, "cross_entropy_weight": 0.1}


def test_the_centre_is_the_start_pair_with_the_geometric_means_of_its_ranges():
    options = {"adaptive_averaging": (25.0, 100.0), "adaptive_width": (0.25, 1.0)}
    space = SearchSpace(SpaceOptions(phases="adaptive", **SCE, **options))
    assert [n for n in space.distributions if not n.startswith(("early_", "late_"))] == [
        *("after", "guard", "averaging", "width")
    ]
    found = space.at(space.start_point)
    assert isinstance(found, AdaptiveParameters)
    loss = found.build(10, lr=0.01)
    assert loss.switch == "adaptive"
    assert (loss.after, loss.guard) == (pytest.approx(2.0), pytest.approx(0.02))
    assert (loss.averaging, loss.width) == (pytest.approx(0.98), pytest.approx(0.5))
    assert (loss.early.eta, loss.late.eta, loss.lr) == (4.0, 0.5, 0.01)


def test_suggest_gives_the_loss_and_numbers_are_no_parameters():
    trial = optuna.create_study().ask()
    options = {"coordinates": "canonical", "adaptive_after": 2.5, "adaptive_guard": 0.015}
    loss = suggest_taylor_loss(trial, 4, phases="adaptive", lr=0.02, **options)
    assert (loss.after, loss.guard, loss.averaging, loss.lr) == (2.5, 0.015, 0.98, 0.02)
    assert len(trial.params) == 2 * 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"phases": 2, "adaptive_guard": 0.1}, "adaptive_guard is an option of phases: adaptive"),
        ({"adaptive_after": 1.0}, "adaptive_after is an option of phases: adaptive"),
        ({"phases": "adaptive", "switch": 0.1}, "switch is an option of phases: 2"),
        ({"late_eta": 1.0}, "late_eta is an option of phases: 2 or phases: adaptive"),
        ({"phases": "adaptive", "adaptive_averaging": 0.5}, "must be 1 step or more, got 0.5"),
        ({"phases": 2, "lr": 0.1}, 'lr is an option of phases="adaptive"'),
    ],
)
def test_options_of_other_phases_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        suggest_taylor_loss(optuna.create_study().ask(), 4, **options)


def test_the_shipped_study_starts_at_the_unsearched_pair():
    spec = StudySpec.from_yaml(STUDIES / "general.yaml")
    assert len(spec.tasks) == 16
    found = spec.space.at(spec.space.start_point)
    loss = found.build(10)
    assert (loss.after, loss.guard) == (pytest.approx(2.0), pytest.approx(0.02))
    assert (loss.early.eta, loss.late.eta) == (pytest.approx(4.0), pytest.approx(0.5))
