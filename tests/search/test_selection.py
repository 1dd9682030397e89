"""The result of a study: the mean of CMA-ES, the second round on fresh seeds, its provenance."""

import json
import math
import pickle
from dataclasses import replace

import cmaes
import numpy as np
import optuna
import pytest
from optuna.trial import TrialState
from support.small import small_spec

from optuna_robustloss.losses import MAE_THETA, equivalent, load_loss, save_loss
from optuna_robustloss.search.objective import NoisyLabelObjective
from optuna_robustloss.search.selection import (
    choose_finalists,
    evaluate_finalists,
    generation_means,
    recombination_weights,
    selected_loss,
    stored_selection,
)
from optuna_robustloss.search.study import create_study
from optuna_robustloss.search.worker import run_worker
from optuna_robustloss.seeds import derive_seed

pytestmark = pytest.mark.integration  # runs searches

optuna.logging.set_verbosity(optuna.logging.WARNING)

RANGES = {"eta": [0.1, 10.0], "cross_entropy_weight": [0.003, 0.3]}


def paraboloid(spec):
    """A cheap objective with its maximum away from the start, in the units of the search."""

    def evaluate(trial):
        spec.space.suggest(trial)
        if trial.params == spec.space.start_point:
            trial.set_user_attr("start", spec.start)
        total = 0.0
        for position, (name, d) in enumerate(sorted(spec.space.distributions.items())):
            low, high = (math.log(d.low), math.log(d.high)) if d.log else (d.low, d.high)
            value = math.log(trial.params[name]) if d.log else trial.params[name]
            total += (position + 1) * ((value - low) / (high - low) - 0.6) ** 2
        return 1 - total / 100

    return evaluate


def analytic_study(spec, n_trials):
    study = create_study(spec, optuna.storages.InMemoryStorage(), "analytic")
    study.optimize(paraboloid(spec), n_trials=n_trials)
    return study


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


@pytest.fixture(scope="module")
def searched():
    """A small study that is done, with its objective."""
    spec = small_spec(eta=[1.0, 20.0])
    study = create_study(spec, optuna.storages.InMemoryStorage(), "done")
    objective = NoisyLabelObjective(spec)
    run_worker(study, objective)
    return study, objective


# --- The mean of CMA-ES ---


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


# --- The finalists ---


def test_finalists_are_the_mean_the_best_trials_and_the_start():
    spec = small_spec(popsize=6, generations=7, finalists=3, **RANGES)
    study = analytic_study(spec, spec.n_trials)
    mean, *best, control = choose_finalists(study, spec)
    assert mean.name == "mean of the last 5 CMA means"
    last = generation_means(study, spec)[-5:]
    for name, distribution in spec.space.distributions.items():
        values = np.array([m[name] for m in last])
        expected = np.exp(np.log(values).mean()) if distribution.log else values.mean()
        assert mean.params[name] == pytest.approx(expected)
    by_value = sorted(study.trials[1:], key=lambda t: -t.value)
    assert [f.name for f in best] == [f"trial {t.number}" for t in by_value[:3]]
    assert [f.params for f in best] == [t.params for t in by_value[:3]]
    assert [f.control for f in (mean, *best, control)] == [False] * 4 + [True]
    assert equivalent(control.parameters.theta, MAE_THETA)
    assert control.parameters.eta == pytest.approx(mean.parameters.eta)
    assert control.parameters.cross_entropy_weight == mean.parameters.cross_entropy_weight


@pytest.mark.parametrize("sampler", ["generational", "optuna-cmaes"])
def test_before_the_first_generation_is_done_there_is_no_mean(sampler):
    spec = small_spec(sampler=sampler)
    names = [f.name for f in choose_finalists(analytic_study(spec, 3), spec)]
    assert sorted(names) == ["start (mae) at the same η", "trial 1", "trial 2"]


@pytest.mark.parametrize("sampler", ["generational", "optuna-cmaes"])
@pytest.mark.parametrize("n_trials", [0, 1])
def test_a_study_without_a_candidate_is_an_error(n_trials, sampler):
    spec = small_spec(sampler=sampler)
    study = analytic_study(spec, n_trials)
    with pytest.raises(ValueError, match="no complete trial yet: search first"):
        evaluate_finalists(study, NoisyLabelObjective(spec))
    assert stored_selection(study) is None


# --- The second round ---


def test_finalists_are_trained_on_seeds_that_no_trial_had(searched, monkeypatch):
    study, objective = searched
    runs, seeds, scores = [], [], objective.scores
    monkeypatch.setattr(objective, "scores", lambda p, s: seeds.append(s) or scores(p, s))
    selection = evaluate_finalists(
        study, objective, on_run=lambda done, total: runs.append((done, total))
    )
    assert len(selection.finalists) == 4  # the mean, two trials, the control
    assert runs == [(1, 3), (2, 3), (3, 3)]
    assert all(len(f.values) == 3 and len(set(f.values)) > 1 for f in selection.finalists)
    assert selection.winner.mean == max(f.mean for f in selection.finalists if not f.control)
    assert selection.winner.mean == pytest.approx(np.mean(selection.winner.values))
    assert selection.winner.std == pytest.approx(np.std(selection.winner.values, ddof=1))
    trained = {derive_seed(objective.spec.seed, "generation", g) for g in range(2)}
    assert len({*seeds} | trained) == 5


def test_the_winner_is_never_the_control(searched, monkeypatch):
    study, objective = searched
    real = NoisyLabelObjective.scores

    def flattering(self, losses, seed):
        return [
            score
            if equivalent(parameters.theta, MAE_THETA)
            else replace(score, scores={t: replace(s, value=0.1) for t, s in score.scores.items()})
            for parameters, score in zip(losses, real(self, losses, seed), strict=True)
        ]

    monkeypatch.setattr(NoisyLabelObjective, "scores", flattering)
    selection = evaluate_finalists(study, objective)
    assert selection.control.mean > selection.winner.mean
    assert not selection.winner.control


def test_the_outcome_is_stored_with_the_study(searched):
    study, objective = searched
    selection = evaluate_finalists(study, objective)
    assert stored_selection(study) == selection
    json.dumps(study.user_attrs)


def test_an_outcome_is_out_of_date_once_trials_follow():
    spec = small_spec()
    study = create_study(spec, optuna.storages.InMemoryStorage(), "early")
    objective = NoisyLabelObjective(spec)
    run_worker(study, objective, n_trials=3)
    evaluate_finalists(study, objective)
    assert stored_selection(study) is not None
    run_worker(study, objective, n_trials=1)
    assert stored_selection(study) is None


# --- The loss ---


def test_the_selected_loss_says_where_it_comes_from(searched, tmp_path):
    study, objective = searched
    spec = objective.spec
    selection = evaluate_finalists(study, objective)
    loss = selected_loss(study, selection, objective)
    winner = selection.winner
    assert (loss.theta, loss.eta) == (winner.parameters.theta, winner.parameters.eta)
    assert loss.num_classes == 10
    save_loss(loss, tmp_path / "loss.json")
    provenance = load_loss(tmp_path / "loss.json").provenance
    assert provenance == loss.provenance
    assert provenance.pop("exported").startswith("20")
    assert provenance == {
        "study": "done",
        "spec": json.loads(spec.model_dump_json()),
        "spec_hash": spec.hash,
        "optuna_robustloss_version": study.user_attrs["spec"]["version"],
        "chosen": winner.name,
        "trials": 8,
        "fitness": {"mean": winner.mean, "std": winner.std, "values": list(winner.values)},
        "control": {
            "name": "start (mae) at the same η",
            "mean": selection.control.mean,
            "std": selection.control.std,
        },
        # 150 images in batches of 16, 4 epochs
        "lr_times_steps": {"digits/mlp2/symmetric 40 %": pytest.approx(0.003 * 10 * 4)},
    }
