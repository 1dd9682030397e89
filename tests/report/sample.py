"""A small benchmark, made up."""

from itertools import product

import numpy as np

from optuna_robustloss.benchmark.runs import Measured, Run, RunEvaluation, RunResult
from optuna_robustloss.report.statistics import Scores

TASKS = ("mnist/mlp2/symmetric 80 %", "mnist/mlp2/symmetric 40 %", "cifar10/vgg11/asymmetric 40 %")
METHODS = ("ce", "gce", "ar_sym80")
SEEDS = range(3)


def measured(methods=METHODS, tasks=TASKS, seeds=SEEDS, regime="native", picks=("last", "best")):
    """Accuracies that rise with the method's place; ``best`` is .05 above ``last``."""
    noise = np.random.default_rng(0)
    return [
        Measured(
            method=method,
            dataset=task.split("/")[0],
            task=task,
            seed=seed,
            regime=regime,
            pick=pick,
            accuracy=0.4
            + 0.1 * methods.index(method)
            + 0.05 * (pick == "best")
            + noise.normal(0, 0.01),
            scale=1.0,
            epoch=10.0,
        )
        for method, task, seed, pick in product(methods, tasks, seeds, picks)
    ]


def fixed(table, regime="native", pick="last"):
    """One accuracy for each method → task → list over seeds; a task's data set is before its /."""
    return [
        Measured(method, task.split("/")[0], task, seed, regime, pick, accuracy, 1.0, 10.0)
        for method, tasks in table.items()
        for task, accuracies in tasks.items()
        for seed, accuracy in enumerate(accuracies)
    ]


def scores(methods, means, datasets=None):
    """Scores of (methods, tasks) means, with a single seed; by default, tasks are data sets."""
    tasks = tuple(f"t{i}" for i in range(len(means[0])))
    datasets = tuple(datasets or tasks)
    means = np.array(means, dtype=float)
    by_seed = {
        name: means[:, [d == name for d in datasets]].mean(1, keepdims=True) for name in datasets
    }
    return Scores(tuple(methods), tasks, datasets, means, by_seed)


def result(method="ce", task=TASKS[0], seed=0, scale=1.0, steps=(10, 20, 40), **fields):
    """A training at learning rate .1 whose clean validation is best at the second moment."""
    test = fields.pop("test", [0.2, 0.6, 0.5][: len(steps)])
    clean = fields.pop("clean", [0.3, 0.7, 0.4][: len(steps)])
    curve = tuple(
        RunEvaluation(step, step / 10, 0.1 * step, t, c, c, None, 0.1 * i)
        for i, (step, t, c) in enumerate(zip(steps, test, clean, strict=True))
    )
    return RunResult(Run(method, task, seed, scale), curve, **fields)


def results(methods=METHODS, tasks=TASKS, seeds=SEEDS, scales=(0.1, 1.0)):
    return [
        result(method, task, seed, scale)
        for method, task, seed, scale in product(methods, tasks, seeds, scales)
    ]
