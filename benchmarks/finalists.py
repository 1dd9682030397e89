"""Simulate searches whose generations differ in luck: which rule selects the best finalists?

A candidate's measured accuracy is its true accuracy + an offset that its generation shares + noise
of its own; candidates too far from the optimum stay at chance, without the offset. CMA-ES ranks a
generation by the measured values. Each rule selects three trials, which are measured again beside
the mean of the last CMA means, on three seeds that all of them share; the best mean wins.

    python -m benchmarks.finalists --repetitions 400
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from cmaes import CMA

DIMENSIONS, POPSIZE, FINALISTS, SEEDS, LAST_MEANS = 12, 12, 3, 3, 5
CHANCE, OPTIMUM = 10.0, 70.0
#: Points lost per unit of squared distance along each axis, and what fails altogether.
AXES = np.geomspace(0.1, 3.0, DIMENSIONS)
FAILS = 35.0

@dataclass(frozen=True)
class Search:
    """Trials of one simulated search, in the order of their evaluation."""

    generation: np.ndarray
    """(n,) from 0."""
    value: np.ndarray
    """(n,) measured accuracies in percent."""
    truth: np.ndarray
    """(n,) true accuracies in percent."""
    mean_truth: float
    """Of the mean of the last CMA means."""


def true_accuracy(x: np.ndarray) -> np.ndarray:
    """Return the true accuracies (n,) in percent of points (n, 12) around the optimum at 0."""
    loss = (AXES * x**2).sum(-1)
    return np.where(loss < FAILS, OPTIMUM - loss, CHANCE)


def search(rng: np.random.Generator, generations: int, offset: float, noise: float) -> Search:
    """Run CMA-ES on measured accuracies; offset and noise are standard deviations in points."""
    start = rng.standard_normal(DIMENSIONS) * 0.9
    cma = CMA(start, 1.0, population_size=POPSIZE, seed=int(rng.integers(2**31)))
    values, truths, means = [], [], []
    for _ in range(generations):
        points = np.array([cma.ask() for _ in range(POPSIZE)]) if not RANDOM else start+rng.standard_normal((POPSIZE,DIMENSIONS))
        truth = true_accuracy(points)
        trained = truth > CHANCE
        measured = truth + noise * rng.standard_normal(POPSIZE) * np.where(trained, 1, 0.3)
        measured += trained * offset * rng.standard_normal()
        values.append(np.maximum(measured, CHANCE - 2))
        truths.append(truth)
        cma.tell(list(zip(points, -values[-1], strict=True)))
        means.append(cma.mean)
    last = np.mean(means[-LAST_MEANS:], axis=0)
    generation = np.repeat(np.arange(generations), POPSIZE)
    return Search(
        generation, np.concatenate(values), np.concatenate(truths), float(true_accuracy(last))
    )


import sys
RANDOM="--random" in sys.argv
Rule = Callable[[Search], np.ndarray]


def of_generation(search: Search, statistic: Callable[..., np.ndarray]) -> np.ndarray:
    return statistic(search.value.reshape(-1, POPSIZE), axis=1)


def raw(search: Search) -> np.ndarray:
    return search.value


def centred(search: Search, statistic: Callable[..., np.ndarray] = np.median) -> np.ndarray:
    return search.value - of_generation(search, statistic)[search.generation]


def detrended(
    search: Search, degree: int, statistic: Callable[..., np.ndarray] = np.median
) -> np.ndarray:
    centres = of_generation(search, statistic)
    x = np.arange(len(centres))
    trend = np.polynomial.Polynomial.fit(x, centres, degree)(x)
    return centred(search, statistic) + trend[search.generation]


def smoothed(search: Search, width: int, statistic: Callable[..., np.ndarray] = np.median):
    centres = of_generation(search, statistic)
    trend = [centres[max(0, i - width) : i + width + 1].mean() for i in range(len(centres))]
    return centred(search, statistic) + np.array(trend)[search.generation]


def last(search: Search, count: int) -> np.ndarray:
    late = search.generation >= search.generation.max() + 1 - count
    return np.where(late, centred(search), -np.inf)

def last_raw(search: Search, count: int) -> np.ndarray:
    late = search.generation >= search.generation.max() + 1 - count
    return np.where(late, search.value, -np.inf)


RULES: dict[str, Rule] = {
    "raw fitness": raw,
    "minus the generation's mean": lambda s: centred(s, np.mean),
    "minus the generation's median": centred,
    "median, plus a straight trend": lambda s: detrended(s, 1),
    "median, plus a quadratic trend": lambda s: detrended(s, 2),
    "mean, plus a straight trend": lambda s: detrended(s, 1, np.mean),
    "median, smoothed over 5": lambda s: smoothed(s, 2),
    "median, smoothed over 11": lambda s: smoothed(s, 5),
    **{f"median, last {k}": (lambda s, k=k: last(s, k)) for k in (1, 3, 5, 10)},
    **{f"raw, last {k}": (lambda s, k=k: last_raw(s, k)) for k in (3, 5, 10)},
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repetitions", type=int, default=400)
    parser.add_argument("--generations", type=int, default=30)
    parser.add_argument("--offset", type=float, default=5.5)
    parser.add_argument("--noise", type=float, default=2.5)
    parser.add_argument("--random", action="store_true")
    args = parser.parse_args()
    rows = {name: [] for name in RULES}
    first=[];lastm=[];best=[];mean=[]; spread=[]
    for seed in range(args.repetitions):
        rng = np.random.default_rng(seed)
        s = search(rng, args.generations, args.offset, args.noise)
        again = args.noise / SEEDS**0.5 * rng.standard_normal(FINALISTS + 1)
        tr=s.truth.reshape(-1,POPSIZE)
        first.append(tr[0].mean()); lastm.append(tr[-5:].mean()); best.append(s.truth.max()); mean.append(s.mean_truth); spread.append(tr[-5:].std(1).mean())
        for name, rule in RULES.items():
            score = rule(s)
            chosen = np.argsort(-score, kind="stable")[:FINALISTS]
            truth = np.append(s.truth[chosen], s.mean_truth)
            won = truth[np.argmax(truth + again)]
            trial = s.truth[chosen][np.argmax(s.truth[chosen]+again[:3])]
            rows[name].append((won, trial, s.truth[chosen].mean(), s.generation[chosen].mean()))
    print(np.mean(first), np.mean(lastm), np.mean(best), np.mean(mean), "within sd late", np.mean(spread))
    for name, values in rows.items():
        v = np.array(values)
        print(f"{name:35s} winner {v[:,0].mean():.2f} ± {v[:,0].std()/len(v)**.5:.2f} trial winner {v[:,1].mean():.2f} mean of finalists {v[:,2].mean():.2f} generation {v[:,3].mean():.1f}")


if __name__ == "__main__":
    main()
