"""Compare methods with a reference method on the same tasks and seeds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import bootstrap

from optuna_robustloss.report.statistics import Scores

TIE = 0.005
"""Accuracies that are less than half a percentage point apart count as a tie."""
LEVEL = 0.95
"""Of the intervals."""


@dataclass(frozen=True)
class PairedDifference:
    """A method against the reference; differences are of accuracies in [0, 1]."""

    method: str
    reference: str
    wins: int
    ties: int
    losses: int
    difference: float
    """Method minus reference: mean over tasks."""
    low: float | None
    """Lower end of the bootstrap interval; None for a single task."""
    high: float | None


def paired_differences(scores: Scores, reference: str) -> tuple[PairedDifference, ...]:
    """Compare every other method with the reference, one of the methods.

    Differences are paired: by seed within a task, and averaged there. The intervals are percentile
    bootstrap intervals of the mean over tasks that resample tasks. With few tasks they are too
    narrow, and they are not corrected for the number of methods.
    """
    base = scores.means[scores.methods.index(reference)]
    rows = []
    for method, means in zip(scores.methods, scores.means, strict=True):
        if method == reference:
            continue
        differences = means - base
        low, high = _interval(differences)
        wins, losses = int((differences >= TIE).sum()), int((differences <= -TIE).sum())
        ties = len(differences) - wins - losses
        mean = float(differences.mean())
        rows.append(PairedDifference(method, reference, wins, ties, losses, mean, low, high))
    return tuple(rows)


def _interval(values: np.ndarray) -> tuple[float, float] | tuple[None, None]:
    if len(values) < 2:
        return None, None
    interval = bootstrap(
        (values,),
        np.mean,
        confidence_level=LEVEL,
        n_resamples=9999,
        method="percentile",
        random_state=np.random.default_rng(0),
    ).confidence_interval
    return float(interval.low), float(interval.high)
