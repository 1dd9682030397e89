"""Several trials evaluated together: one population, one outcome each."""

import optuna
import pytest
from optuna.trial import FixedTrial

from optuna_robustloss.sampler.sampler import GenerationalCmaEsSampler
from search.test_objective import LABEL, generational, objective

pytestmark = pytest.mark.integration  # trains networks


def several(count, **changes):
    """Trials of one study, asked for together, with the start loss among them."""
    study = generational()
    evaluate = objective(**changes)
    study.sampler = GenerationalCmaEsSampler(
        count, seed=0, search_space=evaluate.spec.space.distributions
    )
    return evaluate, [study.ask() for _ in range(count)]


def test_trials_evaluated_together_are_worth_what_they_are_alone():
    evaluate, trials = several(4, noise=["symmetric:0.4", "none"])
    outcomes = evaluate.evaluate(trials)
    assert len(set(outcomes)) > 1
    for trial, outcome in zip(trials, outcomes, strict=True):
        own = FixedTrial(trial.params)
        assert outcome == pytest.approx(evaluate(own), abs=0.02)
        noted = [v for k, v in trial.user_attrs.items() if k.startswith("accuracy")]
        assert outcome == pytest.approx(sum(noted) / 2)
    stored = [t.intermediate_values for t in trials[0].study.trials]
    assert len({tuple(values) for values in stored}) == 1  # the same steps


def test_the_worst_third_is_pruned():
    evaluate, trials = several(6, noise=["symmetric:0.4", "none"], prune_at=[1])
    outcomes = evaluate.evaluate(trials)
    pruned = [i for i, o in enumerate(outcomes) if isinstance(o, optuna.TrialPruned)]
    assert len(pruned) == 2
    first = {i: t.user_attrs[f"accuracy {LABEL}"] for i, t in enumerate(trials)}
    left = [i for i in first if i not in pruned]
    assert max(first[i] for i in pruned) <= min(first[i] for i in left)
    for i, trial in enumerate(trials):
        assert ("accuracy digits/mlp2/clean" in trial.user_attrs) is (i in left)
        assert isinstance(outcomes[i], float) is (i in left)


def test_one_trials_failure_leaves_the_others_alone(monkeypatch):
    evaluate, trials = several(4)
    usual = evaluate.evaluate(trials)
    evaluate, trials = several(4)
    lost = RuntimeError("the database is gone")

    def report(value, step):
        raise lost

    monkeypatch.setattr(trials[1], "report", report)
    monkeypatch.setattr(trials[2], "set_user_attr", report)
    outcomes = evaluate.evaluate(trials)
    assert outcomes[1:3] == [lost, lost]
    assert [outcomes[0], outcomes[3]] == pytest.approx([usual[0], usual[3]], abs=0.02)
    assert "generation" not in trials[2].user_attrs


def test_a_constant_loss_is_its_own_trials_fault():
    evaluate = objective()
    start = evaluate.spec.space.start_point
    constant = dict.fromkeys(start, 0.0)
    outcomes = evaluate.evaluate([FixedTrial(p) for p in (start, constant, start)])
    assert isinstance(outcomes[1], ValueError)
    assert "constant" in str(outcomes[1])
    assert outcomes[0] == outcomes[2] > 0.3


def test_trials_of_two_generations_are_two_populations():
    evaluate, study = objective(), generational()
    trials = [study.ask() for _ in range(4)]
    for trial in trials[:3]:
        study.tell(trial, evaluate(trial))
    study.tell(trials[3], 0.1)
    last = study.ask()
    seeds = []
    scores = evaluate.scores
    evaluate.scores = lambda losses, seed, **more: (
        seeds.append((len(losses), seed)) or scores(losses, seed, **more)
    )
    start = FixedTrial(evaluate.spec.space.start_point)
    outcomes = evaluate.evaluate([last, start, last])
    assert [count for count, _ in seeds] == [2, 1]
    assert seeds[0][1] != seeds[1][1]
    assert outcomes[0] == pytest.approx(outcomes[2], abs=0.02)
    assert outcomes[1] == evaluate(start)


def test_no_trials_have_no_outcomes():
    assert objective().evaluate([]) == []


def test_an_interrupt_ends_all():
    evaluate, trials = several(4)

    def report(value, step):
        raise KeyboardInterrupt

    trials[2].report = report
    with pytest.raises(KeyboardInterrupt):
        evaluate.evaluate(trials)
