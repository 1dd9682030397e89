"""The result of a study: the finalists, the second round on fresh seeds, its provenance."""

import json
from dataclasses import replace

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState
from support.analytic import RANGES, analytic_study
from support.small import small_spec

from optuna_robustloss.losses import MAE_THETA, equivalent, load_loss, save_loss
from optuna_robustloss.search import objective as objective_module
from optuna_robustloss.search.objective import OPTUNA_GENERATION, NoisyLabelObjective
from optuna_robustloss.search.selection import (
    choose_finalists,
    evaluate_finalists,
    generation_means,
    rank_trials,
    selected_loss,
    stored_selection,
)
from optuna_robustloss.search.study import create_study
from optuna_robustloss.search.worker import run_worker
from optuna_robustloss.seeds import derive_seed

pytestmark = pytest.mark.integration  # runs searches

optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture(scope="module")
def searched():
    """A small study that is done, with its objective."""
    spec = small_spec(eta=[1.0, 20.0])
    study = create_study(spec, optuna.storages.InMemoryStorage(), "done")
    objective = NoisyLabelObjective(spec)
    run_worker(study, objective)
    return study, objective


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
    values = np.array([t.value for t in study.trials]).reshape(7, 6)[2:]
    above = (values - np.median(values, axis=1, keepdims=True)).ravel()
    best_three = [study.trials[12 + i] for i in np.argsort(-above)[:3]]
    assert [f.name for f in best] == [f"trial {t.number}" for t in best_three]
    assert [f.params for f in best] == [t.params for t in best_three]
    assert [f.control for f in (mean, *best, control)] == [False] * 4 + [True]
    assert equivalent(control.parameters.theta, MAE_THETA)
    assert control.parameters.eta == pytest.approx(mean.parameters.eta)
    assert control.parameters.cross_entropy_weight == mean.parameters.cross_entropy_weight


def made_trials(values, spec, states=None):
    """Trials of consecutive generations, ``(generations, popsize)`` values."""
    states = states or {}
    return [
        optuna.trial.create_trial(
            state=states.get(number, TrialState.COMPLETE),
            value=float(value),
            params=spec.space.start_point,
            distributions=spec.space.distributions,
            system_attrs={OPTUNA_GENERATION: number // spec.popsize},
        )
        for number, value in enumerate(np.ravel(values))
    ]


def ranked(values, spec, states=None):
    trials = made_trials(values, spec, states)
    return [trials.index(t) for t in rank_trials(trials, spec)]


def test_a_lucky_generation_does_not_provide_the_finalists():
    spec = small_spec(popsize=4, generations=8)
    values = 0.5 + np.arange(8)[:, None] / 100 + np.array([0, 0.01, 0.02, 0.03])
    values[7, 3] += 0.01
    expected = ranked(values, spec)
    assert expected[0] == 31
    assert set(expected) == set(range(12, 32))  # the last five generations
    for lucky in range(8):
        shifted = values + 0.2 * (np.arange(8) == lucky)[:, None]
        assert ranked(shifted, spec)[:3] == expected[:3]
    everywhere = ranked(values, small_spec(popsize=4, generations=8, sampler="random"))
    assert set(everywhere) == set(range(32))


def test_pruned_trials_are_no_finalists_and_lie_below_the_median():
    spec = small_spec(popsize=6, generations=2)
    values = np.array([[0.5, 0.5, 0.5, 0.6, 0.9, 0.9], [0.5, 0.5, 0.5, 0.59, 0.1, 0.1]])
    states = dict.fromkeys((4, 5), TrialState.PRUNED)  # at values from early in their trainings
    assert ranked(values, spec, states)[:2] == [3, 9]
    assert not {4, 5} & set(ranked(values, spec, states))


def test_a_generation_counts_when_more_than_half_of_it_is_complete():
    spec = small_spec(popsize=4, generations=2)
    values = np.array([[0.5, 0.5, 0.5, 0.6], [0.3, 0.3, 0.7, 0.7]])
    assert 6 not in ranked(values.ravel()[:7], spec, {5: TrialState.PRUNED, 4: TrialState.PRUNED})
    assert ranked(values, spec)[:2] == [6, 7]
    assert ranked([0.1, 0.2], spec) == [1, 0]
    assert ranked([], spec) == []


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


def test_finalists_are_neither_stopped_at_chance_nor_pruned(monkeypatch):
    spec = small_spec(
        popsize=6, noise=["symmetric:0.4", "none"], stop_at_chance_after=0.5, prune_at=[1]
    )
    objective, options, scored = NoisyLabelObjective(spec), [], objective_module.score_losses
    monkeypatch.setattr(
        objective_module, "score_losses", lambda *a, **o: options.append(o) or scored(*a, **o)
    )
    study = create_study(spec, optuna.storages.InMemoryStorage(), "stopped")
    run_worker(study, objective, n_trials=2)
    assert [(o["stop_at_chance_after"], o["prune_at"]) for o in options] == [(0.5, (1.0,))] * 2
    options.clear()
    evaluate_finalists(study, objective)
    assert [(o["stop_at_chance_after"], o["prune_at"]) for o in options] == [(None, ())] * 3


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
