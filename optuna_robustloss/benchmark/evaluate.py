"""Evaluate some losses on one task: a benchmark in memory."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

from optuna.storages import InMemoryStorage

from optuna_robustloss.benchmark.regimes import measure
from optuna_robustloss.benchmark.spec import BenchmarkSpec
from optuna_robustloss.benchmark.study import create_benchmark, stored_results
from optuna_robustloss.benchmark.trainings import Options, check_data
from optuna_robustloss.benchmark.worker import run_benchmark
from optuna_robustloss.tasks.spec import TaskGrid, TaskSpec

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LossEntry:
    """A loss of the comparison.

    >>> LossEntry.parse("gce*best")
    LossEntry(label='gce, best scale', method='gce', tuned=True)
    """

    label: str
    """Name in the table."""
    method: str
    """Name of a benchmark's method, such as ``gce``, ``mae@10`` or ``digits.json``."""
    tuned: bool = False
    """Choose the scale on validation images."""

    @classmethod
    def parse(cls, text: str) -> LossEntry:
        """Read the name of a method; ``*best`` behind it chooses its scale."""
        method = text.removesuffix("*best")
        tuned = method != text
        return cls(f"{method}, best scale" if tuned else method, method, tuned)


@dataclass(frozen=True)
class LossResult:
    """Test accuracies in [0, 1] of a loss at the last epoch, one per seed."""

    label: str
    accuracies: tuple[float, ...]
    scales: tuple[float, ...] | None
    """Chosen for each seed; None for a loss that is not tuned."""

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return fmean(self.accuracies)

    @property
    def std(self) -> float:
        """Sample standard deviation over the seeds; 0 for a single seed."""
        return stdev(self.accuracies) if len(self.accuracies) > 1 else 0.0


def evaluate_losses(
    task: TaskSpec,
    entries: Sequence[LossEntry],
    *,
    seeds: int = 5,
    seed: int = 0,
    options: Options | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[LossResult]:
    """Train with each loss under one recipe, data and noise, and measure clean test accuracy.

    Noise, split, initial weights and batch order depend on the seed alone. A tuned loss is trained
    at all scales of a benchmark; each seed's scale is the best on that seed's validation images.

    Args:
        task: with validation images, clean or noisy, if an entry is tuned.
        entries: the losses.
        seeds: trainings per loss and scale.
        seed: from which all seeds follow.
        options: device and data.
        on_progress: called with the numbers of finished and of all trainings.

    Returns:
        a result for each entry whose trainings all succeeded, in the order of ``entries``.

    Raises:
        ValueError: a method is unknown, the data is missing, a tuned entry has no validation
            images, or every training failed.

    """
    if task.validation == 0 and any(entry.tuned for entry in entries):
        raise ValueError(
            "choosing a scale needs validation images: set the task's 'validation', for example "
            "to 1000"
        )
    spec = _benchmark(task, entries, seeds, seed)
    tuned = {entry.method for entry in entries if entry.tuned}
    runs = [run for run in spec.runs(scales=spec.scales) if run.scale == 1 or run.method in tuned]
    options = replace(options or Options(), together=len(runs) // seeds)
    check_data(spec, runs, options)
    study = create_benchmark(spec, InMemoryStorage(), spec.name)
    done = itertools.count(1)
    failed = run_benchmark(
        study, spec, runs, options, on_run=lambda: on_progress(next(done), len(runs))
    )
    if len(failed) == len(runs):
        raise ValueError(f"every training failed: {next(iter(failed.values()))}")
    measured = measure(spec, stored_results(study))
    results = []
    for entry in entries:
        regime = f"{task.validation_labels} {task.validation}" if entry.tuned else "native"
        own = sorted(
            (one.seed, one.accuracy, one.scale)
            for one in measured
            if (one.method, one.regime, one.pick) == (entry.method, regime, "last")
        )
        if len(own) < seeds:
            _logger.warning("%s is left out: it has %d of %d seeds", entry.label, len(own), seeds)
            continue
        _, accuracies, scales = zip(*own, strict=True)
        results.append(LossResult(entry.label, accuracies, scales if entry.tuned else None))
    return results


def _benchmark(
    task: TaskSpec, entries: Sequence[LossEntry], seeds: int, seed: int
) -> BenchmarkSpec:
    """Return the benchmark of one task that measures at the end of each training only.

    Losses have the defaults of their classes, as users of the classes have.
    """
    return BenchmarkSpec(
        name="evaluation",
        settings="cifar10",
        methods=tuple(dict.fromkeys(entry.method for entry in entries)),
        tasks=(
            TaskGrid(
                datasets=(task.dataset,),
                architectures=(task.architecture,),
                noise=(task.noise,),
                recipe=task.recipe.model_dump(),
                train=task.train,
                pretrained=task.pretrained,
            ),
        ),
        validation=task.validation,
        few=0,
        evaluations=1,
        seeds=seeds,
        seed=seed,
    )
