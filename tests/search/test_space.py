"""A search over losses with two phases: its parameters, its spec, and a study from start to end."""

import json
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
from optuna.distributions import FloatDistribution
from optuna.trial import FixedTrial
from support.small import search_space, small_spec

from optuna_robustloss.cli.search_result import export_loss
from optuna_robustloss.losses import (
    CONFIRM_THETA,
    MAE_THETA,
    PhasedLoss,
    TaylorLoss,
    equivalent,
    load_loss,
)
from optuna_robustloss.losses.registry import make_loss
from optuna_robustloss.losses.serialization import describe_loss
from optuna_robustloss.search.objective import NoisyLabelObjective
from optuna_robustloss.search.parameters import LossParameters, PhasedParameters
from optuna_robustloss.search.selection import choose_finalists, generation_means
from optuna_robustloss.search.spec import StudySpec
from optuna_robustloss.search.study import create_study
from optuna_robustloss.search.suggest import suggest_taylor_loss
from optuna_robustloss.search.worker import run_worker
from search.test_selection import analytic_study

optuna.logging.set_verbosity(optuna.logging.WARNING)

STUDIES = Path(__file__).parents[2] / "studies"
#: The best pair of the manual trials, at the centre of every range.
PAIR = {
    "phases": 2,
    "start": "sce",
    "eta": (0.4, 40.0),
    "cross_entropy_weight": (0.01, 1.0),
    "late_eta": (0.05, 5.0),
    "coordinates": "canonical",
}
NAMES = [
    *("early_a2", "early_a3", "early_a4", "early_d1", "early_d2", "early_d3"),
    *("early_eta", "early_cross_entropy_weight"),
    *("late_a2", "late_a3", "late_a4", "late_d1", "late_d2", "late_d3"),
    *("late_eta", "switch"),
]


def suggested(**options):
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
    loss = suggest_taylor_loss(trial, 10, **options)
    return trial.distributions, loss


# --- Suggesting ---


def test_two_losses_and_the_switch_are_suggested():
    distributions, loss = suggested(phases=2)
    names = [*(f"early_{k}" for k in range(12)), *(f"late_{k}" for k in range(12)), "switch"]
    assert list(distributions) == names
    assert distributions["switch"] == FloatDistribution(0.02, 0.32, log=True)
    assert distributions["late_8"] == FloatDistribution(-7.0, -1.0)
    assert isinstance(loss, PhasedLoss)
    assert 0.02 <= loss.switch <= 0.32
    assert (loss.width, loss.total_steps) == (0.04, None)


def test_a_fixed_trial_gives_the_loss_of_its_numbers():
    params = dict.fromkeys(NAMES, 0.7) | {"late_d2": -1.5, "switch": 0.1, "late_eta": 2.0}
    options = {"total_steps": 50, "reduction": "none", "switch_width": 0.2}
    loss = suggest_taylor_loss(FixedTrial(params), 10, **PAIR, **options)
    early = suggest_taylor_loss(
        FixedTrial(params),
        10,
        prefix="early_",
        **{name: PAIR[name] for name in ("start", "eta", "cross_entropy_weight", "coordinates")},
    )
    assert describe_loss(loss.early) == describe_loss(early)
    assert (loss.early.eta, loss.early.cross_entropy_weight) == (0.7, 0.7)
    assert (loss.late.eta, loss.late.cross_entropy_weight) == (2.0, 0.0)
    assert describe_loss(loss.late)["canonical"] == pytest.approx([0.7, 0.7, 0.7, 0.7, -1.5, 0.7])
    assert (loss.switch, loss.width, loss.total_steps) == (0.1, 0.2, 50)
    values = [loss(torch.eye(10), torch.arange(10)) for _ in range(20)]
    assert [v.shape for v in values] == [(10,)] * 20
    assert not torch.equal(values[0], values[-1])


def test_a_fixed_switch_is_no_parameter():
    distributions, loss = suggested(phases=2, switch=0.08)
    assert "switch" not in distributions
    assert loss.switch == 0.08


def test_a_prefix_comes_before_all_names():
    distributions, _ = suggested(phases=2, prefix="mine_")
    assert len(distributions) == 25
    assert all(name.startswith("mine_") for name in distributions)


def test_the_start_is_the_named_pair():
    space = search_space(**PAIR)
    assert list(space.distributions) == NAMES
    assert list(space.centre) == [n for n in NAMES if not space.distributions[n].log]
    assert space.start == "sce-then-confirm"
    found, named = space.at(space.start_point).build(10), make_loss("sce-then-confirm", 10)
    assert found.switch == pytest.approx(named.switch)
    assert found.width == named.width
    assert equivalent(found.early.theta, MAE_THETA)
    assert equivalent(found.late.theta, CONFIRM_THETA)
    logits, labels = torch.randn(20, 10), torch.arange(20) % 10
    for progress in (0.0, 0.1, 1.0):
        found.progress = named.progress = progress
        torch.testing.assert_close(found(logits, labels), named(logits, labels))


@pytest.mark.parametrize("sampler", [optuna.samplers.TPESampler, optuna.samplers.CmaEsSampler])
def test_any_sampler_searches_it(sampler):
    def objective(trial):
        loss = suggest_taylor_loss(trial, 3, **PAIR, total_steps=4)
        return sum(loss(torch.eye(3), torch.arange(3)).item() for _ in range(4))

    study = optuna.create_study(sampler=sampler(seed=0))
    study.optimize(objective, n_trials=12)
    assert len({trial.params["switch"] for trial in study.trials}) == 12


def test_parameters_survive_json():
    space = search_space(**PAIR)
    stored = json.loads(json.dumps(asdict(space.at(space.start_point))))
    again = PhasedParameters(
        LossParameters(**stored.pop("early")), LossParameters(**stored.pop("late")), **stored
    )
    assert describe_loss(again.build(5)) == describe_loss(space.at(space.start_point).build(5))


# --- Errors ---

WRONG = [
    ({"phases": 3}, "^phases: Input should be 1, 2 or .adaptive."),
    ({"phases": 2, "switch": (0.5, 0.1)}, "^switch: expected .* 0 < low < high"),
    ({"phases": 2, "switch": (0.1, 0.98)}, r"switch \+ switch_width ≤ 1 .*switch \(0.1, 0.98\)"),
    ({"phases": 2, "switch": -0.1}, "^switch: expected a number, 0 or more"),
    ({"phases": 2, "switch_width": -0.1}, "switch_width ≥ 0, got .* switch_width -0.1"),
    ({"phases": 2, "switch_width": math.nan}, "switch_width ≥ 0, got .* switch_width nan"),
    ({"phases": 2, "late_start": "sce"}, "^late_start 'sce' .* set late_cross_entropy_weight"),
    ({"phases": 2, "late_eta": 0}, "^late_eta: expected a number, above 0"),
    ({"phases": 2, "start": "sce"}, "^start 'sce' is MAE plus cross-entropy"),
    ({"late_eta": 2.0}, "late_eta is an option of phases: 2"),
    ({"switch": 0.1}, "switch is an option of phases: 2"),
    ({"late_start": "mae"}, "late_start is an option of phases: 2"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_wrong_options_are_errors_of_one_line(options, message):
    with pytest.raises(ValueError, match=message):
        suggest_taylor_loss(FixedTrial({}), 10, **options)
    values = small_spec().model_dump() | options
    with pytest.raises(ValueError, match=message.replace("^", "^study.yaml: ")) as error:
        StudySpec.from_values(values, "study.yaml")
    assert "\n" not in str(error.value)


# --- The spec ---


def test_a_spec_has_the_space_of_its_options():
    for options in ({"phases": 1}, PAIR):
        found, expected = small_spec(**options).space, search_space(**options, half_width=1.5)
        assert found.distributions == expected.distributions


def test_the_phased_mixture_starts_at_the_pair_on_the_tasks_of_the_mixture():
    phased, mixture = (
        StudySpec.from_yaml(STUDIES / f"{n}.yaml") for n in ("mixture_phased", "mixture")
    )
    assert phased.tasks == mixture.tasks
    expected = search_space(**PAIR | {"switch": (0.1, 0.9)}, half_width=1.5)
    assert phased.space.distributions == expected.distributions
    assert (phased.horizons, phased.generations) == (mixture.horizons, mixture.generations)


# --- A study from start to end ---


def test_means_of_generations_average_the_switch_in_the_logarithm():
    spec = small_spec(**PAIR, popsize=6, generations=6)
    study = analytic_study(spec, spec.n_trials)
    means = generation_means(study, spec)
    assert len(means) == 6
    assert len({mean["switch"] for mean in means}) == 6
    mean, *_, control = choose_finalists(study, spec)
    expected = np.exp(np.mean([np.log(m["switch"]) for m in means[-5:]]))
    assert mean.parameters.switch == pytest.approx(expected)
    assert control.name == "start (sce-then-confirm) at the same η"
    assert control.parameters.switch == mean.parameters.switch
    assert control.parameters.late.eta == mean.parameters.late.eta
    assert equivalent(control.parameters.late.theta, CONFIRM_THETA)


@pytest.mark.integration
@pytest.mark.parametrize("sampler", ["generational", pytest.param("tpe", marks=pytest.mark.slow)])
def test_a_study_finds_a_loss_that_is_loaded_again(tmp_path, sampler):
    spec = small_spec(**PAIR, sampler=sampler, horizons=[0.5, 1])
    study = create_study(spec, optuna.storages.InMemoryStorage(), "phased")
    objective = NoisyLabelObjective(spec)
    run_worker(study, objective)
    trials = [t for t in study.trials if t.value is not None]
    assert len(trials) >= 8
    assert sorted(trials[0].params) == sorted(NAMES)
    assert trials[0].params == pytest.approx(spec.space.start_point)
    assert max(t.value for t in trials) > 0.3  # chance is .1

    saved = export_loss(study, objective, tmp_path / "loss.json")
    loaded = load_loss(tmp_path / "loss.json", total_steps=40)
    assert isinstance(loaded, PhasedLoss)
    assert describe_loss(loaded) == describe_loss(saved) | {"total_steps": 40}
    assert loaded.provenance["spec"]["phases"] == 2
    winner = spec.space.at(study.user_attrs["selection"]["finalists"][0]["params"])
    assert isinstance(loaded.early, TaylorLoss)
    assert isinstance(winner, PhasedParameters)
    assert loaded(torch.zeros(3, 10), torch.arange(3)).isfinite()
