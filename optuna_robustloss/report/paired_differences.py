"""Compare methods with a reference method on the same tasks and seeds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from optuna_robustloss.report.statistics import Scores

TIE = 0.005
"""Accuracies that are less than half a percentage point apart count as a tie."""
LEVEL = 0.95
"""Of the intervals."""
_RESAMPLES = 9999


@dataclass(frozen=True)
class PairedDifference:
    """A method against the reference; differences are of accuracies in [0, 1]."""

    method: str
    reference: str
    wins: int
    """Of tasks, as ties and losses."""
    ties: int
    losses: int
    difference: float
    """Method minus reference: mean over tasks and seeds of a data set, then over data sets."""
    low: float | None
    """Lower end of the bootstrap interval; None for a single data set."""
    high: float | None


def paired_differences(scores: Scores, reference: str) -> tuple[PairedDifference, ...]:
    """Compare every other method with the reference, one of the methods.

    Intervals are percentile intervals of a cluster bootstrap (Davison and Hinkley, "Bootstrap
    Methods and their Application", 1997, section 3.8): data sets are drawn with replacement, then
    seeds within each. All tasks of a data set stay together, as they share images and splits. The
    intervals are not corrected for the number of methods, and with few data sets too narrow.
    """
    base = scores.methods.index(reference)
    rows = []
    for number, method in enumerate(scores.methods):
        if method == reference:
            continue
        differences = scores.means[number] - scores.means[base]
        wins, losses = int((differences >= TIE).sum()), int((differences <= -TIE).sum())
        ties = len(differences) - wins - losses
        clusters = [values[number] - values[base] for values in scores.by_seed.values()]
        mean = float(np.mean([cluster.mean() for cluster in clusters]))
        low, high = _interval(clusters)
        rows.append(PairedDifference(method, reference, wins, ties, losses, mean, low, high))
    return tuple(rows)


def _interval(
    clusters: list[NDArray[np.float64]],
) -> tuple[float, float] | tuple[None, None]:
    """Return the interval of the mean over clusters, which hold a value for each seed."""
    count = len(clusters)
    if count < 2:
        return None, None
    random = np.random.default_rng(0)
    drawn = random.integers(count, size=(_RESAMPLES, count))
    means = np.empty(drawn.shape)
    for number, values in enumerate(clusters):
        where = drawn == number
        seeds = random.integers(len(values), size=(int(where.sum()), len(values)))
        means[where] = values[seeds].mean(axis=1)
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(means.mean(axis=1), [tail, 100 - tail])
    return float(low), float(high)
