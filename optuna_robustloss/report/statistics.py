"""Average ranks of methods over data sets, and which of them differ: Demšar (JMLR 7, 2006)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, sqrt

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import f as f_distribution
from scipy.stats import friedmanchisquare, rankdata, studentized_range

from optuna_robustloss.benchmark.runs import Measured

_SAME_BUT_FOR_ROUNDING = 12  # digits
ENOUGH = 6
"""Data sets for p-values: on five, even five wins of five differ at p = 2 · 2⁻⁵ = .0625 only."""


@dataclass(frozen=True, eq=False)
class Scores:
    """Accuracies of methods on the tasks that all of them have completely."""

    methods: tuple[str, ...]
    tasks: tuple[str, ...]
    datasets: tuple[str, ...]
    """Data set of each task."""
    means: NDArray[np.float64]
    """(methods, tasks), in [0, 1]: means over the seeds."""
    by_seed: Mapping[str, NDArray[np.float64]]
    """Data set → (methods, seeds), in [0, 1]: means over its tasks."""
    notes: tuple[str, ...] = ()
    """Which tasks are left out, and why."""


@dataclass(frozen=True)
class Friedman:
    """Test of the hypothesis that all methods are equal."""

    chi2: float
    """χ²_F with k − 1 degrees of freedom, corrected for ties (Demšar's, p. 11, is not)."""
    p: float
    f: float
    """F_F of Iman and Davenport with k − 1 and (k − 1)(N − 1) degrees of freedom."""
    p_f: float


@dataclass(frozen=True)
class Ranking:
    """Methods by their average rank over data sets, best first; rank 1 is the highest accuracy."""

    methods: tuple[str, ...]
    ranks: tuple[float, ...]
    tasks: int
    datasets: int
    alpha: float
    friedman: Friedman | None
    """None, with a note, for fewer than 3 methods or ``ENOUGH`` data sets, or if all tie."""
    critical_difference: float | None
    """Ranks further apart than this differ at ``alpha`` (Nemenyi); None as for ``friedman``."""
    cliques: tuple[tuple[str, ...], ...]
    """The largest groups of methods, two or more each, that do not differ."""
    notes: tuple[str, ...] = ()

    def rank_of(self, method: str) -> float:
        """Return the average rank of a method."""
        return self.ranks[self.methods.index(method)]


def mean_scores(measured: Sequence[Measured], methods: Iterable[str] | None = None) -> Scores:
    """Return the mean accuracies over seeds, on the tasks where no method lacks a seed.

    Args:
        measured: of one regime, pick, horizon and schedule.
        methods: to be compared; by default all.

    Raises:
        ValueError: no task is complete.

    """
    accuracies = _accuracies(measured)
    chosen = tuple(dict.fromkeys(accuracies.columns if methods is None else methods))
    accuracies = accuracies[list(chosen)].dropna(how="all")
    counts = accuracies.groupby("task", sort=False).count()
    seeds = accuracies.groupby("task", sort=False).size()
    complete = counts.eq(seeds, axis=0).all(axis=1)
    notes = []
    for task, row in counts[~complete].iterrows():
        lacking = [f"{m} has {n} of {seeds[task]} seeds" for m, n in row.items() if n < seeds[task]]
        notes.append(f"left out of the ranks: {task}, where {', '.join(lacking)}")
    if not complete.any():
        raise ValueError(f"no task has all seeds of {', '.join(chosen)}: {'; '.join(notes)}")
    means = accuracies.groupby("task", sort=False).mean()[complete]
    tasks = tuple(map(str, means.index))
    dataset_of = {one.task: one.dataset for one in measured}
    kept = accuracies[accuracies.index.isin(tasks, level="task")]
    groups = kept.groupby(kept.index.get_level_values("task").map(dataset_of), sort=False)
    by_seed = {str(name): own.groupby("seed").mean().to_numpy().T for name, own in groups}
    datasets = tuple(dataset_of[task] for task in tasks)
    return Scores(chosen, tasks, datasets, means.to_numpy().T, by_seed, tuple(notes))


def methods_with_most(measured: Sequence[Measured], share: float = 0.5) -> tuple[str, ...]:
    """Return the methods that have all seeds on at least ``share`` of the tasks."""
    accuracies = _accuracies(measured)
    tasks = accuracies.groupby("task", sort=False)
    complete = tasks.count().eq(tasks.size(), axis=0).mean()
    return tuple(complete[complete >= share].index)


def _accuracies(measured: Sequence[Measured]) -> pd.DataFrame:
    """(task, seed) × method, in the order of their first appearance; NaN where missing."""
    table = pd.DataFrame([vars(m) for m in measured])
    return (
        table.set_index(["task", "seed", "method"])["accuracy"]
        .unstack("method")
        .reindex(columns=table["method"].unique())
        .reindex(table["task"].unique(), level="task")
    )


def rank(scores: Scores, alpha: float = 0.05) -> Ranking:
    """Rank k methods on N data sets, ties sharing their mean rank, and average over data sets.

    Tasks on the same images are not independent, so a data set counts once: by the means over its
    tasks.
    """
    rounded = _over_tasks(scores).round(_SAME_BUT_FOR_ROUNDING)
    k, n = rounded.shape
    ranks = rankdata(-rounded, axis=0).mean(axis=1)
    order = np.argsort(ranks, kind="stable")
    methods = tuple(scores.methods[i] for i in order)
    ordered = tuple(float(ranks[i]) for i in order)
    reason = None
    tasks = len(scores.tasks)
    if k < 3 or n < ENOUGH:
        reason = (
            "no p-values and no critical difference: tasks on the same images are not independent, "
            f"so they need {ENOUGH} data sets and 3 methods; there are {n} and {k}"
        )
    elif not np.ptp(rounded, axis=0).any():
        reason = "no Friedman test: all methods tie on every data set"
    if reason:
        return Ranking(methods, ordered, tasks, n, alpha, None, None, (), (*scores.notes, reason))
    chi2, p = friedmanchisquare(*rounded)
    f, p_f = iman_davenport(float(chi2), k, n)
    width = critical_difference(k, n, alpha)
    cliques = _cliques(methods, ordered, width)
    friedman = Friedman(float(chi2), float(p), f, p_f)
    return Ranking(methods, ordered, tasks, n, alpha, friedman, width, cliques, scores.notes)


def _over_tasks(scores: Scores) -> NDArray[np.float64]:
    """(methods, data sets): means over the tasks of each data set."""
    names = np.array(scores.datasets)
    columns = [scores.means[:, names == name].mean(axis=1) for name in dict.fromkeys(names)]
    return np.stack(columns, axis=1)


def iman_davenport(chi2: float, k: int, n: int) -> tuple[float, float]:
    """Return F_F = (N − 1) χ²_F / (N (k − 1) − χ²_F) and its p-value; Demšar, p. 11.

    Args:
        chi2: Friedman's χ²_F.
        k: number of methods.
        n: number of data sets, N.

    """
    rest = n * (k - 1) - chi2
    # χ²_F is at most N (k − 1): every task has the same ranks.
    f = (n - 1) * chi2 / rest if rest > 1e-9 else inf
    return f, float(f_distribution.sf(f, k - 1, (k - 1) * (n - 1)))


def critical_difference(k: int, n: int, alpha: float = 0.05) -> float:
    """Return CD = q_α √(k (k + 1) / (6 N)) of k methods on n data sets; Demšar, p. 12.

    q_α is the quantile of the studentised range divided by √2 (Demšar, Table 5a).

    >>> round(critical_difference(4, 14), 2)
    1.25

    """
    q = float(studentized_range.ppf(1 - alpha, k, inf)) / sqrt(2)
    return q * sqrt(k * (k + 1) / (6 * n))


def _cliques(
    methods: tuple[str, ...], ranks: tuple[float, ...], width: float
) -> tuple[tuple[str, ...], ...]:
    """Runs of ordered methods whose ends are no further apart than ``width``; none in another."""
    ends = [int(np.searchsorted(ranks, low + width, side="right")) for low in ranks]
    previous = [0, *ends[:-1]]
    return tuple(
        methods[start:end]
        for start, (before, end) in enumerate(zip(previous, ends, strict=True))
        if end > before and end - start > 1
    )
