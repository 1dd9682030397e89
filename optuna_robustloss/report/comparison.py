"""Compare methods under each set of conditions: accuracies, ranks, differences."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from optuna_robustloss.benchmark.runs import Measured, Pick
from optuna_robustloss.report.paired_differences import PairedDifference, paired_differences
from optuna_robustloss.report.published import Published, published
from optuna_robustloss.report.statistics import Ranking, mean_scores, methods_with_most, rank
from optuna_robustloss.report.styles import in_order

PICKS: Mapping[Pick, str] = {"last": "last epoch", "best": "best on validation"}
#: Methods of the native regime that use clean labels, which the others do not.
_USE_CLEAN_LABELS = ("ce-stopped-clean",)


@dataclass(frozen=True, order=True)
class Conditions:
    """What the rows of a table have in common."""

    regime: str
    horizon: float = 1.0
    schedule: str = "recipe"

    @classmethod
    def of(cls, one: Measured) -> Conditions:
        """Return the conditions of a measured accuracy."""
        return cls(one.regime, one.horizon, one.schedule)

    @property
    def label(self) -> str:
        """Short text for titles, without what is as in the recipes."""
        parts = [self.regime]
        if self.horizon != 1:
            parts.append(f"{self.horizon:g} × the epochs")
        if self.schedule != "recipe":
            parts.append(f"{self.schedule} learning rate")
        return ", ".join(parts)


@dataclass(frozen=True)
class Summary:
    """Accuracies of a method on a task, over seeds."""

    mean: float
    """In [0, 1]."""
    std: float | None
    """Sample standard deviation; None for a single seed."""
    seeds: int

    @classmethod
    def of(cls, accuracies: Sequence[float]) -> Summary:
        """Summarise the accuracies of all seeds."""
        spread = stdev(accuracies) if len(accuracies) > 1 else None
        return cls(fmean(accuracies), spread, len(accuracies))


@dataclass(frozen=True)
class Standing:
    """Methods compared by one pick, on the tasks that all of them have completely."""

    ranking: Ranking
    averages: Mapping[str, float]
    """Method → mean accuracy over these tasks, in [0, 1]."""
    differences: tuple[PairedDifference, ...]
    """Against the reference method; empty if that is not among the ranked ones."""


@dataclass(frozen=True)
class Comparison:
    """Methods × tasks under the same conditions."""

    conditions: Conditions
    settings: str
    """Settings of the methods, such as ``published``; empty if not known."""
    methods: tuple[str, ...]
    tasks: tuple[str, ...]
    summaries: Mapping[tuple[str, str, Pick], Summary]
    """(method, task, pick) → what was measured, if anything was."""
    published: tuple[Published, ...]
    """What the paper prints for these tasks; takes no part in ranks."""
    standings: Mapping[Pick, Standing]
    """Without the picks for which nothing can be ranked."""
    trainings: int
    """Methods × seeds of each task."""
    missing: int
    """How many of these were not measured."""
    seeds: int
    """Largest number of seeds of a task."""
    notes: tuple[str, ...]


def comparisons(
    measured: Sequence[Measured], reference: str = "ce", settings: str = ""
) -> tuple[Comparison, ...]:
    """Compare the methods with ``reference`` and each other, under each set of conditions.

    Methods that are complete on less than half of the tasks are not ranked.
    """
    groups: dict[Conditions, list[Measured]] = defaultdict(list)
    for one in measured:
        groups[Conditions.of(one)].append(one)
    return tuple(_compare(c, group, reference, settings) for c, group in groups.items())


def _compare(
    conditions: Conditions, measured: list[Measured], reference: str, settings: str
) -> Comparison:
    methods = in_order(one.method for one in measured)
    tasks = tuple(dict.fromkeys(one.task for one in measured))
    values: dict[tuple[str, str, Pick], list[float]] = defaultdict(list)
    seeds: dict[str, set[int]] = defaultdict(set)
    for one in measured:
        values[one.method, one.task, one.pick].append(one.accuracy)
        seeds[one.task].add(one.seed)
    standings: dict[Pick, Standing] = {}
    notes: list[str] = []
    for pick, label in PICKS.items():
        if chosen := [one for one in measured if one.pick == pick]:
            standing, said = _standing(chosen, methods, reference)
            notes += [f"{label}: {note}" for note in said]
            if standing:
                standings[pick] = standing
    # The paper's figures are of native losses, at the end of its own recipe.
    same = conditions.regime == "native" and conditions.horizon == 1
    trainings = len(methods) * sum(map(len, seeds.values()))
    done = len({(one.method, one.task, one.seed) for one in measured})
    return Comparison(
        conditions,
        settings,
        methods,
        tasks,
        {key: Summary.of(accuracies) for key, accuracies in values.items()},
        tuple(entry for task in tasks if same for entry in published(task)),
        standings,
        trainings,
        trainings - done,
        max(map(len, seeds.values())),
        tuple(notes),
    )


def _standing(
    measured: list[Measured], methods: tuple[str, ...], reference: str
) -> tuple[Standing | None, list[str]]:
    """Return the standing, None if no task is complete, and what is to be said of it."""
    notes = []
    if clean := [method for method in methods if method in _USE_CLEAN_LABELS]:
        methods = tuple(method for method in methods if method not in clean)
        notes.append(f"not ranked, as clean labels choose the epoch: {', '.join(clean)}")
    with_most = methods_with_most(measured)
    ranked = [method for method in methods if method in with_most]
    left_out = [method for method in methods if method not in with_most]
    if left_out:
        notes.append(f"not ranked, complete on less than half of the tasks: {', '.join(left_out)}")
    if not ranked:
        return None, notes
    try:
        scores = mean_scores(measured, ranked)
    except ValueError as error:
        return None, [*notes, f"no ranks: {error}"]
    ranking = rank(scores)
    against = paired_differences(scores, reference) if reference in ranked else ()
    if not against:
        notes.append(f"no differences to {reference}: it is not ranked, or alone")
    averages = dict(zip(scores.methods, map(float, scores.means.mean(axis=1)), strict=True))
    return Standing(ranking, averages, against), [*notes, *ranking.notes]
