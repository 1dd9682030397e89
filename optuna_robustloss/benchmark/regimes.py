"""Choose scale and epoch in the same ways for all methods, and read off their accuracies.

For SGD another scale of a loss is another learning rate, so all methods have the same choice:

- ``native``: the published form, last epoch; no label of the task is needed.
- ``blind``: one scale for all tasks of a data set, chosen on the tasks of the *other* data sets;
  last epoch. A benchmark of one data set has none.
- ``clean N``: scale (and epoch) chosen on N clean validation labels of the task.
- ``noisy N``: the same on noisy validation labels.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Literal

from optuna_robustloss.benchmark.runs import Measured, Pick, RunEvaluation, RunResult
from optuna_robustloss.benchmark.spec import BenchmarkSpec

Labels = Literal["clean", "few", "noisy"]
_Key = tuple[str, str, int]


def measure(spec: BenchmarkSpec, results: Sequence[RunResult]) -> list[Measured]:
    """Return the accuracies under every regime for which the results suffice.

    A regime that chooses a scale needs results at all scales of the spec. The best epoch of
    ``native`` is chosen on ``validation`` clean labels.
    """
    images = {task.label: _images(task.dataset) for task in spec.task_specs}
    groups: dict[tuple[float, str], list[RunResult]] = defaultdict(list)
    for result in results:
        if result.run.task in images:
            groups[result.run.horizon, result.run.schedule].append(result)
    return [
        replace(one, horizon=horizon, schedule=schedule, dataset=images[one.task])
        for (horizon, schedule), group in sorted(groups.items())
        for one in _measure(spec, group, images)
    ]


def _images(dataset: str) -> str:
    """Return the same name for all spellings of a data set's file or folder."""
    kind, _, path = dataset.rpartition(":")
    return f"{kind}:{os.path.realpath(path)}" if kind or path.endswith(".npz") else dataset


def _measure(
    spec: BenchmarkSpec, results: Sequence[RunResult], images: Mapping[str, str]
) -> Iterator[Measured]:
    by_key: dict[_Key, dict[float, RunResult]] = defaultdict(dict)
    for result in results:
        run = result.run
        by_key[run.method, run.task, run.seed][run.scale] = result
    for key, by_scale in by_key.items():
        if 1.0 in by_scale:
            yield from _native(key, by_scale[1.0])
    scales = [float(scale) for scale in spec.scales]
    tuned = {key: by for key, by in by_key.items() if set(scales) <= by.keys()}
    if len(scales) < 2:
        return
    for key, by_scale in tuned.items():
        yield from _tuned(spec, key, by_scale)
    yield from _blind(tuned, scales, images)


def _native(key: _Key, result: RunResult) -> Iterator[Measured]:
    method, task, seed = key
    last = result.curve[-1]
    yield _measured(key, "native", "last", last, 1.0)
    stops: tuple[Labels, ...] = ("clean", "noisy")
    for labels in stops:
        best = best_evaluation(result.curve, labels)
        if best is None:
            continue
        if labels == "clean":
            yield _measured(key, "native", "best", best, 1.0)
        if method == "ce":
            yield _measured((f"ce-stopped-{labels}", task, seed), "native", "last", best, 1.0)


def _tuned(spec: BenchmarkSpec, key: _Key, by_scale: dict[float, RunResult]) -> Iterator[Measured]:
    regimes: list[tuple[str, Labels]] = [
        (f"clean {spec.validation}", "clean"),
        (f"clean {spec.few}", "few"),
        (f"noisy {spec.validation}", "noisy"),
    ]
    for regime, labels in regimes:
        for pick in ("last", "best"):
            options: list[tuple[float, float, RunEvaluation]] = []
            for scale, result in sorted(by_scale.items()):
                curve = result.curve[-1:] if pick == "last" else result.curve
                evaluation = best_evaluation(curve, labels)
                if evaluation is not None:
                    value = getattr(evaluation, labels)
                    options.append((value, scale, evaluation))
            if options:
                _, scale, evaluation = max(options, key=lambda option: option[0])
                yield _measured(key, regime, pick, evaluation, scale)


def _blind(
    tuned: dict[_Key, dict[float, RunResult]], scales: Sequence[float], images: Mapping[str, str]
) -> Iterator[Measured]:
    """Choose for each data set the scale with the best mean clean accuracy on the others.

    The mean is over the tasks of a data set, then over data sets: all those that have a tuned
    method. A method that lacks any of their tasks has no blind choice.
    """
    values: dict[str, dict[str, dict[float, list[float]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    for (method, task, _), by_scale in tuned.items():
        for scale in scales:
            clean = by_scale[scale].curve[-1].clean
            if clean is not None:
                values[method][task][scale].append(clean)
    tasks = list(dict.fromkeys(task for _, task, _ in tuned))  # a report may be of some tasks only
    for key, by_scale in tuned.items():
        method, task, _ = key
        others: dict[str, list[dict[float, list[float]]]] = defaultdict(list)
        for other in tasks:
            if images[other] != images[task]:
                others[images[other]].append(values[method][other])
        if not others or not all(all(group) for group in others.values()):
            continue
        means = {
            scale: fmean(fmean(fmean(one[scale]) for one in group) for group in others.values())
            for scale in scales
        }
        scale = max(scales, key=lambda s: means[s])
        yield _measured(key, "blind", "last", by_scale[scale].curve[-1], scale)


def best_evaluation(curve: Sequence[RunEvaluation], labels: Labels) -> RunEvaluation | None:
    """Return the first evaluation with the best validation accuracy; None without labels."""
    values = [getattr(evaluation, labels) for evaluation in curve]
    if None in values:
        return None
    return curve[max(range(len(values)), key=values.__getitem__)]


def _measured(
    key: _Key, regime: str, pick: Pick, evaluation: RunEvaluation, scale: float
) -> Measured:
    method, task, seed = key
    return Measured(method, "", task, seed, regime, pick, evaluation.test, scale, evaluation.epoch)
