"""Compare methods with a reference method on the same tasks and seeds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import bootstrap

from optuna_robustloss.report.statistics import Scores

TIE = 0.005
"""Accuracies that are less than half a percentage point apart count as a tie."""


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
    level: float = 0.95


def paired_differences(
    scores: Scores,
    reference: str,
    *,
    tie: float = TIE,
    level: float = 0.95,
    resamples: int = 9999,
    seed: int = 0,
) -> tuple[PairedDifference, ...]:
    """Compare every other method with the reference.

    Differences are paired: by seed within a task, and averaged there. The intervals are percentile
    bootstrap intervals of the mean over tasks that resample tasks. The seeds of a task share its
    data and its network, so they are no independent observations. With few tasks such intervals
    are too narrow, and they are not corrected for the number of methods.

    Args:
        scores: of all methods, also of the reference.
        reference: name of a method.
        tie: a difference of less than this is a tie.
        level: of the intervals.
        resamples: number of bootstrap samples.
        seed: of the resampling; each method's interval depends on nothing else.

    Raises:
        ValueError: the reference is none of the methods.

    """
    if reference not in scores.methods:
        raise ValueError(
            f"the reference {reference!r} is none of the methods {', '.join(scores.methods)}"
        )
    base = scores.means[scores.methods.index(reference)]
    rows = []
    for method, means in zip(scores.methods, scores.means, strict=True):
        if method == reference:
            continue
        differences = means - base
        low, high = _interval(differences, level, resamples, seed)
        wins, losses = int((differences >= tie).sum()), int((differences <= -tie).sum())
        ties = len(differences) - wins - losses
        mean = float(differences.mean())
        rows.append(PairedDifference(method, reference, wins, ties, losses, mean, low, high, level))
    return tuple(rows)


def _interval(
    values: np.ndarray, level: float, resamples: int, seed: int
) -> tuple[float, float] | tuple[None, None]:
    if len(values) < 2:
        return None, None
    interval = bootstrap(
        (values,),
        np.mean,
        confidence_level=level,
        n_resamples=resamples,
        method="percentile",
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)
