"""The search space of Taylor losses: which parameters are suggested, and what becomes of them."""

import json
import math
from dataclasses import asdict
from inspect import signature

import optuna
import pytest
import torch
from optuna.distributions import FloatDistribution
from optuna.trial import FixedTrial
from support.small import search_space

from optuna_robustloss.losses import (
    MAE_THETA,
    MSE_THETA,
    ClassificationLoss,
    TaylorLoss,
    canonical,
    canonical_names,
    equivalent,
)
from optuna_robustloss.losses.serialization import describe_loss
from optuna_robustloss.search.parameters import LossParameters
from optuna_robustloss.search.space import SpaceOptions
from optuna_robustloss.search.suggest import suggest_taylor_loss

optuna.logging.set_verbosity(optuna.logging.WARNING)


def suggested(**options):
    """The distributions of a new trial that suggests a loss for ten classes, and the loss."""
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
    loss = suggest_taylor_loss(trial, 10, **options)
    return trial.distributions, loss


class CountingTrial(FixedTrial):
    """Notes the name of every call of ``suggest_float``."""

    def __init__(self, params):
        super().__init__(params)
        self.calls = []

    def suggest_float(self, name, *args, **kwargs):
        self.calls.append(name)
        return super().suggest_float(name, *args, **kwargs)


# --- The paper's space ---


def test_twelve_floats_are_suggested_in_order():
    trial = CountingTrial({f"theta_{k}": value for k, value in enumerate(MAE_THETA)})
    loss = suggest_taylor_loss(trial, 10)
    assert trial.calls == [f"theta_{k}" for k in range(12)]
    assert (loss.theta, loss.num_classes, loss.eta) == (MAE_THETA, 10, 10.0)


@pytest.mark.parametrize(("start", "theta"), [("mae", MAE_THETA), ("mse", MSE_THETA)])
@pytest.mark.parametrize("half_width", [3.0, 0.25])
def test_each_coefficient_is_within_half_a_width_of_the_start(start, theta, half_width):
    options = {} if (start, half_width) == ("mae", 3.0) else {"half_width": half_width}
    distributions, loss = suggested(start=start, **options)
    assert distributions == {
        f"theta_{k}": FloatDistribution(value - half_width, value + half_width)
        for k, value in enumerate(theta)
    }
    assert all(abs(a - b) <= half_width for a, b in zip(loss.theta, theta, strict=True))


def test_a_range_of_eta_is_one_more_log_uniform_parameter():
    distributions, loss = suggested(eta=(0.04, 4.0))
    assert len(distributions) == 13
    assert distributions["theta_eta"] == FloatDistribution(0.04, 4.0, log=True)
    assert 0.04 <= loss.eta <= 4.0


def test_a_number_of_eta_is_no_parameter():
    distributions, loss = suggested(eta=2)
    assert len(distributions) == 12
    assert loss.eta == 2


def test_cross_entropy_may_be_a_number_or_a_range():
    distributions, loss = suggested(cross_entropy_weight=0.1)
    assert len(distributions) == 12
    assert loss.cross_entropy_weight == 0.1
    distributions, loss = suggested(cross_entropy_weight=(0.003, 0.3))
    key = "theta_cross_entropy_weight"
    assert distributions[key] == FloatDistribution(0.003, 0.3, log=True)
    assert 0.003 <= loss.cross_entropy_weight <= 0.3


def test_options_of_the_loss_are_passed_on():
    _, loss = suggested(reduction="sum", ignore_index=3, weight=torch.ones(10), variable="log")
    assert (loss.reduction, loss.ignore_index, loss.variable) == ("sum", 3, "log")
    assert loss.weight is not None


# --- Canonical coordinates ---


@pytest.mark.parametrize(("variable", "count"), [("probability", 6), ("log", 7)])
def test_canonical_coordinates_are_what_the_gradient_depends_on(variable, count):
    distributions, loss = suggested(coordinates="canonical", variable=variable)
    names = canonical_names(variable)
    assert list(distributions) == [f"theta_{name}" for name in names]
    assert len(distributions) == count
    trial = FixedTrial({name: 0.7 for name in distributions})
    loss = suggest_taylor_loss(trial, 10, coordinates="canonical", variable=variable)
    assert len(loss.theta) == 12
    found = canonical(loss.theta, variable=variable)
    torch.testing.assert_close(found, torch.full((count,), 0.7, dtype=found.dtype))


# --- The start ---


@pytest.mark.parametrize("coordinates", ["taylor", "canonical"])
@pytest.mark.parametrize("variable", ["probability", "log"])
@pytest.mark.parametrize(("start", "theta"), [("mae", MAE_THETA), ("mse", MSE_THETA)])
def test_the_start_point_is_the_start_loss(start, theta, coordinates, variable):
    space = search_space(start=start, coordinates=coordinates, variable=variable)
    rebuilt = space.at(space.start_point)
    assert equivalent(rebuilt.theta, theta, variable=variable)
    other = MSE_THETA if start == "mae" else MAE_THETA
    assert not equivalent(rebuilt.theta, other, variable=variable)


def test_the_start_point_is_in_the_middle_of_every_range():
    """In the logarithm for log-uniform parameters: where Optuna's CMA-ES starts."""
    space = search_space(eta=(0.04, 4.0), cross_entropy_weight=(0.003, 0.3), start="sce")
    start = space.at(space.start_point)
    assert start.eta == pytest.approx(0.4)
    assert start.cross_entropy_weight == pytest.approx(0.03)
    assert start.theta == pytest.approx(MAE_THETA)
    for name, distribution in space.distributions.items():
        assert distribution._contains(space.start_point[name])


def test_symmetric_cross_entropy_needs_its_cross_entropy():
    with pytest.raises(ValueError, match=r"'sce'.*set cross_entropy_weight.*\[0.003, 0.3\]"):
        suggested(start="sce")
    _, loss = suggested(start="sce", cross_entropy_weight=0.1)
    assert loss.cross_entropy_weight == 0.1


# --- With Optuna ---

SAMPLERS = {
    "cmaes": optuna.samplers.CmaEsSampler,
    "tpe": optuna.samplers.TPESampler,
    "random": optuna.samplers.RandomSampler,
    "gp": optuna.samplers.GPSampler,
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_any_sampler_searches_beside_other_parameters(name):
    logits, target = torch.eye(3).repeat(2, 1), torch.tensor([0, 1, 2, 1, 2, 0])
    built = {}

    def objective(trial):
        lr = trial.suggest_float("lr", 1e-3, 1e-1, log=True)
        loss = suggest_taylor_loss(trial, 3, eta=(0.1, 10), coordinates="canonical")
        built[trial.number] = loss
        trial.suggest_int("depth", 1, 3)
        return lr * loss(logits, target).item()

    sampler = SAMPLERS[name](seed=0)
    if name == "cmaes":
        sampler = optuna.samplers.CmaEsSampler(seed=0, popsize=4)
    study = optuna.create_study(sampler=sampler)
    study.optimize(objective, n_trials=12)
    assert len(study.get_trials(states=[optuna.trial.TrialState.COMPLETE])) == 12
    assert len({trial.params["theta_eta"] for trial in study.trials}) == 12
    space = search_space(eta=(0.1, 10), coordinates="canonical")
    for trial in study.trials:
        again = space.at(trial.params).build(3)
        assert again.theta == built[trial.number].theta
        assert again.eta == built[trial.number].eta


def test_two_losses_in_one_trial_have_two_prefixes():
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trial = study.ask()
    early = suggest_taylor_loss(trial, 10, prefix="early_")
    late = suggest_taylor_loss(trial, 10, prefix="late_", eta=(1, 2))
    assert len(trial.params) == 25
    assert early.theta != late.theta
    assert search_space(prefix="early_").at(trial.params).theta == early.theta
    assert search_space(prefix="late_", eta=(1, 2)).at(trial.params).eta == late.eta


# --- A point of the space ---


def test_parameters_are_plain_numbers_that_survive_json():
    space = search_space(coordinates="canonical", eta=(1, 10), variable="log")
    parameters = space.at(space.start_point)
    again = LossParameters(**json.loads(json.dumps(asdict(parameters))))
    assert describe_loss(again.build(5)) == describe_loss(parameters.build(5))


def test_parameters_build_a_loss_for_any_number_of_classes():
    parameters = LossParameters(MAE_THETA, eta=2.0, cross_entropy_weight=0.1, variable="log")
    loss = parameters.build(7, reduction="none", eta=3.0)
    assert isinstance(loss, TaylorLoss)
    assert (loss.num_classes, loss.eta, loss.reduction) == (7, 3.0, "none")
    assert (loss.cross_entropy_weight, loss.variable) == (0.1, "log")


def test_a_trial_of_another_space_is_an_error():
    params = search_space().start_point
    with pytest.raises(ValueError, match="'theta_eta' is not found"):
        search_space(eta=(1, 2)).at(params)


# --- Arguments ---


def test_the_signature_is_the_model_of_the_search_space():
    fields = SpaceOptions.model_fields
    arguments = signature(suggest_taylor_loss, eval_str=True).parameters
    assert fields.keys() < arguments.keys()
    assert {n: arguments[n].default for n in fields} == {n: f.default for n, f in fields.items()}
    of_loss = signature(ClassificationLoss).parameters
    own = {"trial", "num_classes", "prefix", "total_steps", "lr"}
    for name in arguments.keys() - fields.keys() - own:
        assert arguments[name].default == of_loss[name].default, name
    assert of_loss.keys() - {"theta"} < arguments.keys()
    trial = CountingTrial({})
    with pytest.raises(TypeError, match=r"suggest_taylor_loss\(\) got .* 'etta'"):
        suggest_taylor_loss(trial, 10, etta=1)
    with pytest.raises(ValueError, match="total_steps is an option of phases=2"):
        suggest_taylor_loss(trial, 10, total_steps=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variable": "logit"}, "variable: .*'probability' or 'log' .*'logit'"),
        ({"coordinates": "raw"}, "coordinates: .*'canonical' .*'raw'"),
        ({"start": "ce"}, "start: .*'sce' .*'ce'"),
        ({"eta": 0}, r"^eta: expected a number, above 0, or a range \[low, high\].*got 0"),
        ({"eta": -1.0}, "^eta: expected a number, above 0, .*got -1"),
        ({"eta": math.nan}, "^eta: expected a number, above 0, .*got nan"),
        ({"eta": (2, 1)}, r"^eta: expected .* 0 < low < high \(got \(2, 1\)\)"),
        ({"eta": (0, 1)}, "^eta: expected .* 0 < low < high"),
        ({"eta": (1, 1)}, "^eta: expected .* 0 < low < high"),
        ({"eta": (1, math.inf)}, "^eta: expected .* 0 < low < high"),
        ({"cross_entropy_weight": -0.1}, "cross_entropy_weight: expected a number, 0 or more"),
        ({"cross_entropy_weight": (0, 1)}, "cross_entropy_weight: expected .* 0 < low"),
        ({"half_width": 0}, r"half_width: .* greater than or equal to .* \(got 0\)"),
        ({"half_width": math.inf}, r"half_width: .* less than or equal to .* \(got inf\)"),
    ],
)
def test_wrong_options_are_errors_before_anything_is_suggested(options, message):
    trial = CountingTrial({})
    with pytest.raises(ValueError, match=message):
        suggest_taylor_loss(trial, 10, **options)
    assert trial.calls == []
