"""The mean of the CMA-ES distribution after each generation."""

import math
import pickle

import cmaes
import numpy as np
import optuna
import pytest
from optuna.trial import TrialState
from support.analytic import RANGES, analytic_study, paraboloid
from support.small import small_spec

from optuna_robustloss.search.selection import generation_means, recombination_weights
from optuna_robustloss.search.study import create_study

pytestmark = pytest.mark.integration  # runs searches

optuna.logging.set_verbosity(optuna.logging.WARNING)


def in_units(spec, point):
    """Parameters between 0 and 1 in the range searched, in Optuna's order."""
    found = []
    for name, d in sorted(spec.space.distributions.items()):
        low, high, value = d.low, d.high, point[name]
        if d.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        found.append((value - low) / (high - low))
    return np.array(found)


def pickled_optimizers(study):
    """The state Optuna keeps after each generation; ours, from this very process."""
    found = {}
    for trial in study.trials:
        parts = {k: v for k, v in trial.system_attrs.items() if k.startswith("cma:optimizer")}
        if parts:
            text = "".join(parts[f"cma:optimizer:{i}"] for i in range(len(parts)))
            optimizer = pickle.loads(bytes.fromhex(text))
            found[optimizer.generation] = optimizer
    return found


@pytest.mark.filterwarnings("ignore:divide by zero")  # in cmaes, with one parent
@pytest.mark.parametrize("popsize", [2, 3, 4, 5, 12, 13, 40])
def test_weights_are_those_of_cmaes(popsize):
    optimizer = cmaes.CMA(np.zeros(12), 1.0, population_size=popsize)
    weights = recombination_weights(popsize)
    np.testing.assert_allclose(weights, optimizer._weights[: optimizer._mu], rtol=1e-12)


SPACES = pytest.mark.parametrize(
    "changes",
    [{}, RANGES, RANGES | {"coordinates": "canonical", "popsize": 5}, {"half_width": 0.1}],
    ids=["taylor", "ranges", "canonical", "narrow"],
)


@SPACES
def test_means_of_generations_are_the_optimizers(changes):
    spec = small_spec(**({"popsize": 6, "generations": 5} | changes), sampler="optuna-cmaes")
    study = analytic_study(spec, spec.n_trials + 1)  # the next trial tells the last generation
    means = generation_means(study, spec)
    optimizers = pickled_optimizers(study)
    assert len(means) == len(optimizers) == 5
    for generation, mean in enumerate(means, start=1):
        units = in_units(spec, mean)
        np.testing.assert_allclose(units, optimizers[generation]._mean, atol=1e-6)
        assert np.abs(units - 0.5).max() > 1e-3


@SPACES
def test_means_of_generations_are_those_of_cmaes_told_the_same_trials(changes):
    """The generational sampler's, against a CMA-ES that starts at the spec's centre and σ."""
    spec = small_spec(**({"popsize": 6, "generations": 5} | changes))
    study = analytic_study(spec, spec.n_trials)
    space = sorted(spec.space.distributions.items())
    # A coefficient's first σ is the spec's, a logarithm's a sixth of its range; both in units.
    sigma = np.array([1 / 6 if d.log else spec.sigma0 / (d.high - d.low) for _, d in space])
    bounds = np.stack([-0.5 / sigma, 0.5 / sigma], axis=1)
    reference = cmaes.CMA(np.zeros(len(space)), 1.0, bounds=bounds, population_size=spec.popsize)
    means = generation_means(study, spec)
    assert len(means) == 5
    for generation, mean in enumerate(means):
        told = study.trials[generation * spec.popsize :][: spec.popsize]
        points = [((in_units(spec, t.params) - 0.5) / sigma, -t.value) for t in told]
        reference.tell(points)
        units = in_units(spec, mean)
        np.testing.assert_allclose(units, 0.5 + sigma * reference.mean, atol=1e-9)
        assert np.abs(units - 0.5).max() > 1e-3


@pytest.mark.parametrize(("sampler", "first"), [("generational", 0), ("optuna-cmaes", 1)])
def test_an_incomplete_generation_has_no_mean(sampler, first):
    spec = small_spec(popsize=4, sampler=sampler)
    assert generation_means(analytic_study(spec, first + 3), spec) == []
    assert len(generation_means(analytic_study(spec, first + 4), spec)) == 1
    assert len(generation_means(analytic_study(spec, first + 7), spec)) == 1


def test_trials_that_cmaes_never_saw_have_no_part_in_its_mean():
    """A second worker draws at random while the first one trains the start loss."""
    spec = small_spec(popsize=4, sampler="optuna-cmaes")
    study = create_study(spec, optuna.storages.InMemoryStorage(), "two workers")
    start, early = study.ask(), study.ask()
    values = [paraboloid(spec)(trial) for trial in (start, early)]
    study.tell(start, values[0])
    study.tell(early, 1.0)
    study.optimize(paraboloid(spec), n_trials=5)
    (mean,) = generation_means(study, spec)
    (optimizer,) = pickled_optimizers(study).values()
    np.testing.assert_allclose(in_units(spec, mean), optimizer._mean, atol=1e-6)


def test_failed_and_foreign_trials_have_no_part_in_the_generational_mean():
    spec = small_spec(popsize=4)
    plain = generation_means(analytic_study(spec, 4), spec)
    study = create_study(spec, optuna.storages.InMemoryStorage(), "disturbed")
    study.tell(study.ask(), state=TrialState.FAIL)
    space, start = spec.space.distributions, spec.space.start_point
    study.add_trial(optuna.trial.create_trial(value=1.0, params=start, distributions=space))
    study.optimize(paraboloid(spec), n_trials=4)
    assert generation_means(study, spec) == plain
