"""Train the runs of a benchmark: those that differ in method and scale only, side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn

from optuna_robustloss.benchmark.methods import train_methods
from optuna_robustloss.benchmark.runs import Run, RunEvaluation, RunResult
from optuna_robustloss.benchmark.spec import BenchmarkSpec
from optuna_robustloss.distributed.lease import LEASE
from optuna_robustloss.seeds import derive_seed, permutation
from optuna_robustloss.tasks.prepare import LabelledImages, Task, prepare_task
from optuna_robustloss.tasks.recipes import Recipe
from optuna_robustloss.tasks.spec import TaskSpec
from optuna_robustloss.training.evaluation import TrainingResult
from optuna_robustloss.training.networks import initial_model
from optuna_robustloss.training.scoring import run_lengths
from optuna_robustloss.training.train import spread_over_epochs, steps_per_epoch

#: Runs that one process claims and trains together, and loses when it is killed.
TOGETHER = 8
#: Largest number of wrongly labelled training images that are evaluated.
MOST_WRONG = 500


@dataclass(frozen=True)
class Options:
    """How a worker trains: runs side by side, seconds of its lease, and ``train``'s."""

    together: int = TOGETHER
    lease: float = LEASE
    device: torch.device | None = None
    root: Path | None = None
    download: bool = False


def check_data(spec: BenchmarkSpec, runs: Sequence[Run], options: Options) -> None:
    """Load what ``runs`` need once, so that missing data shows before any training.

    Raises:
        ValueError: a data set is not there or too small, or a network does not fit its images.

    """
    for label in dict.fromkeys(run.task for run in runs):
        seed = derive_seed(spec.seed, "benchmark", 0)
        task = _prepared(spec.task(label), seed, options)
        if spec.test is not None and spec.test > len(task.test):
            raise ValueError(
                f"test ({spec.test}) exceeds the {len(task.test)} test images of {label}: leave it "
                "out to take all"
            )
        initial_model(task, seed)


def train_runs(
    spec: BenchmarkSpec, runs: Sequence[Run], options: Options | None = None
) -> list[RunResult]:
    """Train the networks of runs that share task, seed, horizon and schedule.

    Noise, split, initial weights and batch order are the same for all methods and scales.

    Raises:
        ValueError: the runs do not share them, or the data is missing.

    """
    options = options or Options()
    if {population_key(run) for run in runs} != {population_key(runs[0])}:
        raise ValueError("runs that are trained together share task, seed, horizon and schedule")
    task, own_seed = prepare_run(spec, runs[0], options)
    (epochs,) = run_lengths(task.spec.recipe, [runs[0].horizon])
    parts = evaluated_parts(task, spec, own_seed)
    trained: dict[Run, TrainingResult] = {}
    for together, scaled_task in by_learning_rate(task, runs):
        results = train_methods(
            scaled_task,
            [(run.method, run.scale if scaled_task is task else 1.0) for run in together],
            seed=own_seed,
            epochs=epochs,
            settings=spec.settings,
            evaluate_on=parts["test"],
            evaluate_also_on=[part for name, part in parts.items() if name != "test"],
            evaluate_at=evaluation_steps(task, spec, epochs),
            device=options.device,
        )
        trained |= zip(together, results, strict=True)
    sums = cumulative_lrs(task.spec.recipe, epochs * steps_per_epoch(task))
    return [
        RunResult(run, _evaluations(trained[run], list(parts)[1:], sums), trained[run].diverged)
        for run in runs
    ]


def by_learning_rate(task: Task, runs: Sequence[Run]) -> Iterator[tuple[list[Run], Task]]:
    """Yield the runs that share a learning rate, with the task that has it.

    Under SGD a run's scale is that of its loss, and all share the recipe's learning rate. Adam and
    AdamW divide the scale of a loss out again: there it is a factor of the learning rate, so that
    the same choice of scales tunes the same thing.
    """
    recipe = task.spec.recipe
    if recipe.optimizer == "sgd":
        yield list(runs), task
        return
    for scale in dict.fromkeys(run.scale for run in runs):
        changed = task.spec.model_copy(update={"recipe": recipe.changed({"lr": recipe.lr * scale})})
        yield [run for run in runs if run.scale == scale], replace(task, spec=changed)


def trained_networks(
    spec: BenchmarkSpec, task_label: str, methods: Sequence[str], options: Options
) -> tuple[LabelledImages, dict[str, nn.Module]]:
    """Train methods on a task as their first native runs do; return test images and networks."""
    task, seed = prepare_run(spec, Run(methods[0], task_label, 0), options)
    test = evaluated_parts(task, spec, seed)["test"]
    trained = train_methods(
        task,
        [(method, 1.0) for method in methods],
        seed=seed,
        settings=spec.settings,
        evaluate_on=test,
        device=options.device,
        keep_models=True,
    )
    return test, {m: one.model for m, one in zip(methods, trained, strict=True) if one.model}


def prepare_run(spec: BenchmarkSpec, run: Run, options: Options) -> tuple[Task, int]:
    """Return the task of a run, under its schedule, and the seed of its trainings."""
    task_spec = spec.task(run.task)
    seed = derive_seed(spec.seed, "benchmark", run.seed)
    task = _prepared(task_spec, seed, options)
    if run.schedule != "recipe":
        recipe = task_spec.recipe.changed({"schedule": run.schedule})
        task = replace(task, spec=task_spec.model_copy(update={"recipe": recipe}))
    return task, seed


def population_key(run: Run) -> tuple[str, int, float, str]:
    """Return what runs that are trained together have in common."""
    return run.task, run.seed, run.horizon, run.schedule


def cumulative_lrs(recipe: Recipe, steps: int) -> list[float]:
    """Return the sums of the learning rates of the first 0, 1, … ``steps`` steps."""
    sums = [0.0]
    for step in range(steps):
        sums.append(sums[-1] + recipe.lr_at(step / steps))
    return sums


def evaluation_steps(task: Task, spec: BenchmarkSpec, epochs: int) -> list[int]:
    """Return the steps after which accuracies are measured: ends of epochs, evenly spread.

    Their number is proportional to the length of the training.
    """
    count = max(1, round(spec.evaluations * epochs / task.spec.recipe.epochs))
    return spread_over_epochs(task, epochs, count)


@lru_cache(maxsize=4)
def _prepared(task: TaskSpec, seed: int, options: Options) -> Task:
    return prepare_task(task, seed=seed, root=options.root, download=options.download)


def evaluated_parts(task: Task, spec: BenchmarkSpec, seed: int) -> dict[str, LabelledImages]:
    """Return the images whose accuracy is measured, by field of ``RunEvaluation``."""
    test, validation, train = task.test, task.validation, task.train
    if spec.test is not None and spec.test < len(test):
        chosen = permutation(derive_seed(seed, "test"), len(test))[: spec.test]
        test = replace(test, index=test.index[chosen])
    parts = {
        "test": test,
        "clean": validation,
        "few": replace(validation, index=validation.index[: spec.few]),
    }
    if validation.images is train.images:  # a data set's own validation images have no noisy labels
        parts["noisy"] = replace(validation, labels=train.labels)
    if task.clean_train_labels is not None:
        given, clean = train.labels[train.index], task.clean_train_labels[train.index]
        wrong = train.index[given != clean][:MOST_WRONG]
        parts["memorised"] = replace(train, index=wrong)
    return {name: part for name, part in parts.items() if len(part)}


def _evaluations(
    result: TrainingResult, also: Sequence[str], cumulative_lr: Sequence[float]
) -> tuple[RunEvaluation, ...]:
    absent = dict.fromkeys(("clean", "few", "noisy", "memorised"))
    return tuple(
        RunEvaluation(
            point.step,
            point.epoch,
            cumulative_lr[point.step],
            point.accuracy,
            **absent | dict(zip(also, point.also, strict=True)),
        )
        for point in result.curve
    )
