"""Searches with a cheap objective instead of trainings."""

import math

import optuna

from optuna_robustloss.search.study import create_study

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
