"""The objective of a search: the value of a trial, its attributes, and what never stops it."""

import math
import warnings

import optuna
import pytest
import torch
from optuna.trial import FixedTrial, TrialState
from support.small import search_space, small_spec

from optuna_robustloss.losses import MAE_THETA
from optuna_robustloss.sampler.sampler import GenerationalCmaEsSampler
from optuna_robustloss.search.objective import NoisyLabelObjective
from optuna_robustloss.search.parameters import LossParameters

pytestmark = pytest.mark.integration  # trains networks

optuna.logging.set_verbosity(optuna.logging.WARNING)

LABEL = "digits/mlp2/symmetric 40 %"
SPACE = search_space(half_width=1.5)


def objective(**changes):
    return NoisyLabelObjective(small_spec(**changes))


def cmaes(seed=0):
    return optuna.samplers.CmaEsSampler(seed=seed, popsize=4, warn_independent_sampling=False)


def searched(evaluate, n_trials, *, sampler=None, enqueue=(), pruner=None):
    study = optuna.create_study(
        direction="maximize",
        sampler=sampler or cmaes(),
        pruner=pruner or optuna.pruners.NopPruner(),
    )
    for params in enqueue:
        study.enqueue_trial(params)
    study.optimize(evaluate, n_trials=n_trials)
    return study


# --- Common random numbers ---


def test_candidates_of_a_generation_share_all_randomness():
    """The same loss scores the same within a generation, and anew in the next."""
    start = search_space(half_width=1.5).start_point
    trials = searched(objective(), 13, enqueue=[start] * 13, sampler=cmaes()).trials
    generations = [trial.user_attrs["generation"] for trial in trials]
    assert generations == [0] * 5 + [1] * 4 + [2] * 4  # trial 0 is the start loss
    curves = [tuple(trial.intermediate_values.values()) for trial in trials]
    for generation in range(3):
        assert len({c for c, g in zip(curves, generations, strict=True) if g == generation}) == 1
    assert len(set(curves)) == 3


def test_the_generation_is_the_samplers():
    """Failed trials do not shift the generations of those that follow."""
    evaluate = objective()

    def failing(trial):
        if trial.number in (2, 3):
            raise ValueError("lost")
        return evaluate(trial)

    study = optuna.create_study(direction="maximize", sampler=cmaes())
    study.enqueue_trial(evaluate.spec.space.start_point)
    study.optimize(failing, n_trials=9, catch=ValueError)
    complete = study.get_trials(states=[TrialState.COMPLETE])
    assert [trial.user_attrs["generation"] for trial in complete] == [0, 0, 0, 0, 0, 1, 1]


def generational(**options):
    sampler = GenerationalCmaEsSampler(4, seed=0, search_space=SPACE.distributions, **options)
    return optuna.create_study(direction="maximize", sampler=sampler)


def test_candidates_of_the_generational_sampler_share_their_slots_generation():
    """However many trials it took: the fifth to finish may be of the first generation."""
    evaluate, study = objective(), generational()
    late, failed = study.ask(), study.ask()
    study.tell(failed, state=TrialState.FAIL)
    study.optimize(evaluate, n_trials=3)
    study.tell(late, evaluate(late))
    study.optimize(evaluate, n_trials=4)
    noted = [trial.user_attrs.get("generation") for trial in study.trials]
    assert noted == [0, None, 0, 0, 0, 1, 1, 1, 1]


def test_another_seed_of_the_spec_is_another_draw():
    start = search_space().start_point
    curves = [
        tuple(
            searched(objective(seed=seed), 1, enqueue=[start]).trials[0].intermediate_values.items()
        )
        for seed in (0, 0, 1)
    ]
    assert curves[0] == curves[1] != curves[2]


# --- Attributes and reports ---


def test_a_trial_knows_the_accuracy_of_every_task_and_its_worker():
    trial = searched(objective(noise=["symmetric:0.4", "none"]), 1).trials[0]
    noisy, clean = (
        trial.user_attrs[f"accuracy digits/mlp2/{n}"] for n in ("symmetric 40 %", "clean")
    )
    assert trial.value == pytest.approx((noisy + clean) / 2)
    assert noisy != clean
    assert trial.user_attrs["worker"].rpartition(":")[2].isdigit()
    assert not {"diverged", "stopped_at_chance"} & trial.user_attrs.keys()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"noise": ["symmetric:0.4", "none", "pair-flip:0.4"]},
        {"architectures": ["jocor", "mlp2"], "recipe": {"epochs": 3}},
        {"horizons": [1, 2]},
        {"horizons": [1, 2, 2.5], "recipe": {"schedule": "cosine"}},
        {"score": "best", "noise": ["symmetric:0.4", "none"]},
    ],
    ids=["one", "noises", "networks", "horizons", "a run each", "best"],
)
def test_every_evaluation_is_reported_at_a_later_step(changes):
    class Noting(FixedTrial):
        def __init__(self, params):
            super().__init__(params)
            self.reports = []

        def report(self, value, step):
            self.reports.append((step, value))

    evaluate = objective(**changes)
    trial = Noting(evaluate.spec.space.start_point)
    value = evaluate(trial)
    steps = [step for step, _ in trial.reports]
    assert steps == sorted(set(steps))
    assert len(steps) >= 3 * len(evaluate.spec.tasks)
    assert all(0 <= accuracy <= 1 for _, accuracy in trial.reports)
    if not changes:
        assert trial.reports[-1][1] == value


def test_reports_are_stored_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        changes = {
            "noise": ["symmetric:0.4", "none"],
            "recipe": {"schedule": "cosine"},
        }
        trial = searched(objective(horizons=[1, 2], **changes), 1).trials[0]
    assert len(trial.intermediate_values) > 20


# --- Scores ---


def test_horizons_average_the_accuracy_at_two_lengths():
    start = search_space(half_width=1.5).start_point
    values = {}
    for horizons in ((1,), (2,), (1, 2)):
        evaluate = objective(horizons=horizons)
        values[horizons] = evaluate(FixedTrial(start))
    assert values[(1,)] != values[(2,)]
    assert values[(1, 2)] == pytest.approx((values[(1,)] + values[(2,)]) / 2)


def test_the_best_epoch_is_noted_when_it_is_what_counts():
    trial = FixedTrial(search_space().start_point)
    value = objective(score="best", recipe={"epochs": 6})(trial)
    assert 0 < trial.user_attrs[f"best epoch {LABEL}"] <= 6
    assert value == trial.user_attrs[f"accuracy {LABEL}"]


def test_a_better_loss_scores_better():
    evaluate = objective()
    backwards = dict(evaluate.spec.space.start_point) | {"theta_6": 2.0}
    wide = NoisyLabelObjective(evaluate.spec.model_copy(update={"half_width": 4.0}))
    assert evaluate(FixedTrial(evaluate.spec.space.start_point)) > 0.3
    trial = FixedTrial(backwards)
    assert wide(trial) < 0.2
    assert trial.user_attrs["stopped_at_chance"] == [LABEL]


def test_scores_of_a_loss_do_not_depend_on_a_trial():
    evaluate = objective()
    parameters = LossParameters(MAE_THETA, eta=10.0)
    (first,), (again,), (other,) = (evaluate.scores([parameters], seed) for seed in (1, 1, 2))
    (task,) = evaluate.spec.tasks
    assert first == again
    assert first.scores[task].curve != other.scores[task].curve


def test_a_diverged_candidate_has_a_finite_value_and_the_study_goes_on():
    evaluate = objective(recipe={"lr": 1e30})
    study = searched(evaluate, 5, sampler=cmaes())
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 5
    for trial in study.trials:
        assert math.isfinite(trial.value)
        assert 0 <= trial.value < 0.5
        assert trial.user_attrs["diverged"] == [LABEL]


# --- Under Optuna ---


@pytest.mark.parametrize("sampler", [cmaes, optuna.samplers.TPESampler], ids=["cmaes", "tpe"])
@pytest.mark.parametrize(
    "pruner",
    [optuna.pruners.NopPruner, lambda: optuna.pruners.MedianPruner(n_startup_trials=1)],
    ids=["none", "median"],
)
def test_plain_optimize_completes_every_trial(sampler, pruner):
    """Early accuracy ranks losses backwards, so no pruner is asked."""
    study = searched(objective(), 7, sampler=sampler(seed=0), pruner=pruner())
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 7
    assert len({trial.params["theta_6"] for trial in study.trials}) == 7


def test_a_fixed_trial_is_worth_what_the_first_generation_gives_it():
    start = search_space(half_width=1.5).start_point
    assert objective()(FixedTrial(start)) == searched(objective(), 1, enqueue=[start]).best_value


def test_the_searched_range_reaches_the_loss():
    """η × learning rate decides: a thousandth of the range leaves the network untrained."""
    sgd = {"optimizer": "sgd", "lr": 0.05, "momentum": 0.9}
    evaluate = objective(eta=[0.001, 10.0], recipe=sgd, score="best", validation_labels="noisy")
    start = evaluate.spec.space.start_point
    high, low = (evaluate(FixedTrial(start | {"theta_eta": eta})) for eta in (10.0, 0.001))
    assert high > low + 0.1


def test_the_device_may_be_named():
    evaluate = NoisyLabelObjective(small_spec(), device="cpu")
    assert evaluate.device == torch.device("cpu")
    with pytest.raises(RuntimeError, match="nonsense"):
        NoisyLabelObjective(small_spec(), device="nonsense")


def test_missing_data_is_an_error_that_names_the_folder(tmp_path):
    evaluate = NoisyLabelObjective(small_spec(datasets=["mnist"]), root=tmp_path)
    with pytest.raises(FileNotFoundError, match=tmp_path.name):
        evaluate.tasks(0)


def test_a_pruner_is_asked_only_if_wanted():
    always = optuna.pruners.ThresholdPruner(lower=2.0)  # no accuracy reaches two
    spec = small_spec()
    asked = searched(NoisyLabelObjective(spec, prune=True), 2, pruner=always)
    assert [t.state for t in asked.trials] == [TrialState.PRUNED] * 2
    unasked = searched(NoisyLabelObjective(spec), 2, pruner=always)
    assert [t.state for t in unasked.trials] == [TrialState.COMPLETE] * 2
