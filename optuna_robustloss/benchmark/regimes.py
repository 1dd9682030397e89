"""From trainings to figures that may be compared: how scale and epoch are chosen.

The same loss at another scale is, for SGD, the same loss at another learning rate. So methods are
compared under the same choice for all:

- ``native``: the published form, last epoch; no label of the task is needed.
- ``blind``: one scale for all tasks, chosen on the *other* tasks; last epoch.
- ``clean N``: scale (and epoch) chosen on N clean validation labels of the task.
- ``noisy N``: the same on noisy validation labels.

Every method has the same scales to choose from, and all of them were trained, so that nobody's
search was longer or luckier.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Literal

from optuna_robustloss.benchmark.runs import Measured, Moment, Outcome, Pick, Run
from optuna_robustloss.benchmark.spec import BenchmarkSpec

Labels = Literal["clean", "few", "noisy"]
#: Methods of their own that are cross-entropy, stopped where validation labels say.
STOPPED = {"ce-stopped-clean": "clean", "ce-stopped-noisy": "noisy"}

_Key = tuple[str, str, int]


def measure(spec: BenchmarkSpec, outcomes: Sequence[Outcome]) -> list[Measured]:
    """Read off all accuracies that the trainings allow.

    A regime that chooses a scale has a method where all scales of the spec were trained for it; so
    a native pass gives ``native`` alone. Its best epoch is that of ``validation`` clean labels.
    """
    found: list[Measured] = []
    for (horizon, schedule), group in _by(outcomes, lambda c: (c.horizon, c.schedule)):
        for item in _measure(spec, group):
            found.append(replace(item, horizon=horizon, schedule=schedule))
    return found


def _by(
    outcomes: Iterable[Outcome], key: Callable[[Run], tuple[float, str]]
) -> Iterator[tuple[tuple[float, str], list[Outcome]]]:
    groups: dict[tuple[float, str], list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        groups[key(outcome.cell)].append(outcome)
    yield from sorted(groups.items())


def _measure(spec: BenchmarkSpec, outcomes: Sequence[Outcome]) -> Iterator[Measured]:
    by_key: dict[_Key, dict[float, Outcome]] = defaultdict(dict)
    for outcome in outcomes:
        cell = outcome.cell
        by_key[cell.method, cell.task, cell.seed][cell.scale] = outcome
    for key, by_scale in by_key.items():
        if 1.0 in by_scale:
            yield from _native(key, by_scale[1.0])
    scales = [float(scale) for scale in spec.scales]
    tuned = {key: by for key, by in by_key.items() if set(scales) <= by.keys()}
    if len(scales) < 2:
        return
    for key, by_scale in tuned.items():
        yield from _tuned(spec, key, by_scale)
    yield from _blind(tuned, scales)


def _native(key: _Key, outcome: Outcome) -> Iterator[Measured]:
    method, task, seed = key
    last = outcome.curve[-1]
    yield _measured(key, "native", "last", last, 1.0)
    for labels in ("clean", "noisy"):
        best = best_moment(outcome.curve, labels)
        if best is None:
            continue
        if labels == "clean":
            yield _measured(key, "native", "best", best, 1.0)
        if method == "ce":
            name = next(name for name, by in STOPPED.items() if by == labels)
            yield _measured((name, task, seed), "native", "last", best, 1.0)


def _tuned(spec: BenchmarkSpec, key: _Key, by_scale: dict[float, Outcome]) -> Iterator[Measured]:
    regimes: list[tuple[str, Labels]] = [
        (f"clean {spec.validation}", "clean"),
        (f"clean {spec.few}", "few"),
        (f"noisy {spec.validation}", "noisy"),
    ]
    for regime, labels in regimes:
        for pick in ("last", "best"):
            options: list[tuple[float, float, Moment]] = []
            for scale, outcome in sorted(by_scale.items()):
                curve = outcome.curve[-1:] if pick == "last" else outcome.curve
                moment = best_moment(curve, labels)
                if moment is not None:
                    value = getattr(moment, labels)
                    options.append((value, scale, moment))
            if options:
                _, scale, moment = max(options, key=lambda option: option[0])
                yield _measured(key, regime, pick, moment, scale)


def _blind(tuned: dict[_Key, dict[float, Outcome]], scales: Sequence[float]) -> Iterator[Measured]:
    """One scale for all tasks: that with the best mean clean validation accuracy on the others.

    The others are all on which a method was tuned; one that lacks any has no blind choice.
    """
    values: dict[str, dict[str, dict[float, list[float]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    for (method, task, _), by_scale in tuned.items():
        for scale in scales:
            clean = by_scale[scale].curve[-1].clean
            if clean is not None:
                values[method][task][scale].append(clean)
    tasks = list(dict.fromkeys(task for _, task, _ in tuned))  # it may be a part of them
    for key, by_scale in tuned.items():
        method, task, _ = key
        others = [values[method][other] for other in tasks if other != task]
        if not others or not all(others):
            continue
        means = {scale: fmean(fmean(other[scale]) for other in others) for scale in scales}
        scale = max(scales, key=lambda s: means[s])
        yield _measured(key, "blind", "last", by_scale[scale].curve[-1], scale)


def best_moment(curve: Sequence[Moment], labels: Labels) -> Moment | None:
    """Return the first moment with the best validation accuracy; None if there are no labels."""
    values = [getattr(moment, labels) for moment in curve]
    if None in values:
        return None
    return curve[max(range(len(values)), key=values.__getitem__)]


def _measured(key: _Key, regime: str, pick: Pick, moment: Moment, scale: float) -> Measured:
    method, task, seed = key
    return Measured(method, task, seed, regime, pick, moment.test, scale, moment.epoch)
