"""Simulate searches whose generations differ in luck: which rule selects the best finalists?

A candidate's measured accuracy is its true accuracy, an offset that its generation shares, and
noise of its own; candidates far from the optimum stay at chance. CMA-ES ranks each generation by
the measured accuracies. A rule selects three trials, which are measured again beside the mean of
the last five CMA means, on three seeds that all of them share; the highest mean wins. The figures
are true accuracies, in points below the optimum, averaged over the searches.

    python -m benchmarks.finalists
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np
from cmaes import CMA
from rich.console import Console
from rich.table import Table

DIMENSIONS, POPSIZE, FINALISTS, SEEDS, LAST_MEANS = 12, 12, 3, 3, 5
CHANCE, OPTIMUM = 10.0, 70.0
#: Points lost per squared unit along each axis, and the loss beyond which nothing is learned.
CURVATURE = np.geomspace(0.1, 3.0, DIMENSIONS)
FAILS = 35.0
#: Standard deviation of the start's coordinates around the optimum, in units of the first σ.
START = 0.9


@dataclass(frozen=True)
class Case:
    """A kind of search: ``offset`` and ``noise`` are standard deviations in points."""

    generations: int
    offset: float
    noise: float
    random: bool = False


@dataclass(frozen=True)
class Search:
    """The trials of a simulated search: measured and true accuracies ``(generations, popsize)``."""

    value: np.ndarray
    truth: np.ndarray
    mean_truth: float
    """True accuracy of the mean of the last CMA means."""


def true_accuracy(x: np.ndarray) -> np.ndarray:
    """Return the true accuracy in percent of points ``(..., 12)``, whose optimum is 0."""
    loss = (CURVATURE * x**2).sum(-1)
    return np.where(loss < FAILS, OPTIMUM - loss, CHANCE)


def simulate(case: Case, rng: np.random.Generator) -> Search:
    """Run one search."""
    start = START * rng.standard_normal(DIMENSIONS)
    cma = CMA(start, 1.0, population_size=POPSIZE, seed=int(rng.integers(2**31)))
    values, truths, means = [], [], []
    for _ in range(case.generations):
        if case.random:
            points = start + rng.standard_normal((POPSIZE, DIMENSIONS))
        else:
            points = np.array([cma.ask() for _ in range(POPSIZE)])
        truth = true_accuracy(points)
        shift = case.offset * rng.standard_normal() + case.noise * rng.standard_normal(POPSIZE)
        values.append(np.where(truth > CHANCE, np.maximum(truth + shift, CHANCE), CHANCE))
        truths.append(truth)
        cma.tell(list(zip(points, -values[-1], strict=True)))
        means.append(cma.mean)
    last = true_accuracy(np.mean(means[-LAST_MEANS:], axis=0))
    return Search(np.array(values), np.array(truths), float(last))


def centred(value: np.ndarray) -> np.ndarray:
    """Return values minus their generation's median."""
    return value - np.median(value, axis=1, keepdims=True)


def with_line(value: np.ndarray) -> np.ndarray:
    """Return values minus their generation's median, plus a straight line through the medians."""
    medians = np.median(value, axis=1)
    x = np.arange(len(medians))
    return centred(value) + np.polynomial.Polynomial.fit(x, medians, 1)(x)[:, None]


def smoothed(value: np.ndarray) -> np.ndarray:
    """Return values minus their generation's median, plus a running mean of the medians."""
    medians = np.median(value, axis=1)
    trend = [medians[max(0, g - 2) : g + 3].mean() for g in range(len(medians))]
    return centred(value) + np.array(trend)[:, None]


def last(score: Callable[[np.ndarray], np.ndarray], count: int) -> Callable[..., np.ndarray]:
    """Return a rule that selects from the last generations only."""

    def rule(value: np.ndarray) -> np.ndarray:
        scores = score(value).astype(float)
        scores[: max(0, len(value) - count)] = -np.inf
        return scores

    return rule


RULES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "value": lambda value: value,
    "minus median": centred,
    "minus median, plus line": with_line,
    "minus median, plus running mean": smoothed,
    "value, last 5 generations": last(lambda value: value, 5),
    **{f"minus median, last {k} generations": last(centred, k) for k in (1, 3, 5, 10)},
}


def select(
    search: Search, rule: Callable[[np.ndarray], np.ndarray], again: np.ndarray
) -> tuple[float, float, float]:
    """Return the true accuracies of the winner, of the best trial, and of the trials on average.

    ``again (4,)`` is the noise of the second round.
    """
    chosen = np.argsort(-rule(search.value).ravel(), kind="stable")[:FINALISTS]
    trials = search.truth.ravel()[chosen]
    finalists = np.append(trials, search.mean_truth)
    best = trials[np.argmax(trials + again[:FINALISTS])]
    return float(finalists[np.argmax(finalists + again)]), float(best), float(trials.mean())


def compare(case: Case, repetitions: int) -> np.ndarray:
    """Return the points below the optimum, ``(repetitions, rules, 3)``; see ``select``."""
    found = []
    for seed in range(repetitions):
        rng = np.random.default_rng(seed)
        search = simulate(case, rng)
        again = case.noise / SEEDS**0.5 * rng.standard_normal(FINALISTS + 1)
        found.append([select(search, rule, again) for rule in RULES.values()])
    return OPTIMUM - np.array(found)


def main() -> None:
    """Print a table for each kind of search."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=200)
    repetitions = parser.parse_args().repetitions
    cases = [Case(30, offset, noise) for offset, noise in product((5.0, 6.0), (2.0, 3.0))]
    cases += [Case(8, 5.5, 2.5), Case(30, 0.0, 2.5), Case(30, 5.5, 2.5, random=True)]
    console = Console(width=110)
    for case in cases:
        kind = "random search" if case.random else "CMA-ES"
        table = Table(
            title=f"{kind}, {case.generations} generations, offset {case.offset}, "
            f"noise {case.noise}: points below the optimum (standard error)"
        )
        for name in ("rule", "winner", "best of the three trials", "mean of the three trials"):
            table.add_column(name)
        below = compare(case, repetitions)
        errors = below.std(0, ddof=1) / repetitions**0.5
        for name, means, own in zip(RULES, below.mean(0), errors, strict=True):
            cells = (f"{m:.2f} ({e:.2f})" for m, e in zip(means, own, strict=True))
            table.add_row(name, *cells)
        console.print(table)


if __name__ == "__main__":
    main()
