"""Asynchronous workers in virtual time: what of their evaluations does CMA-ES come to hear?

A worker asks, its evaluation takes a log-normal time (mean 1), it tells and asks again. Times,
functions and starts are the same for all samplers; everything is in one process, in memory.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import product
from statistics import fmean, median
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks.searches import DIMENSIONS, NAMES, SAMPLERS, suggest
from optuna_robustloss.sampler import allocation

WORKERS = (1, 4, 11, 22, 44, 88)
POPSIZES = (11, 24)
GENERATIONS = 40
#: Standard deviation of the logarithm of an evaluation's time.
SPREAD = 0.5


@dataclass(frozen=True)
class Problem:
    """Quadratic functions whose optimum is away from the start, the centre of the range.

    The ellipsoid has condition 1e6 and is rotated; the noise has a standard deviation of 1.
    """

    name: str
    seed: int

    def __post_init__(self) -> None:
        if self.name not in PROBLEMS:
            raise ValueError(f"there is no problem {self.name!r}: {', '.join(PROBLEMS)}")

    @property
    def noise(self) -> float:
        return 1.0 if self.name == "noisy sphere" else 0.0

    def function(self) -> Callable[[Mapping[str, float]], float]:
        """The function without its noise."""
        rng = np.random.default_rng([self.seed, 1])
        optimum = rng.uniform(-3, 3, DIMENSIONS)
        axes = np.eye(DIMENSIONS)
        if self.name == "ellipsoid":
            rotation = np.linalg.qr(rng.standard_normal((DIMENSIONS, DIMENSIONS)))[0]
            axes = np.logspace(0, 3, DIMENSIONS)[:, None] * rotation
        return lambda x: float(np.sum((axes @ (np.array([x[n] for n in NAMES]) - optimum)) ** 2))


PROBLEMS = ("sphere", "ellipsoid", "noisy sphere")


@dataclass(frozen=True)
class Run:
    """One search: its evaluations, and f(mean) whenever CMA-ES moved."""

    problem: str
    popsize: int
    workers: int
    sampler: str
    seed: int
    evaluations: int
    told: int
    generations: int
    end: float
    course: tuple[tuple[float, float], ...]

    @property
    def used(self) -> float:
        return self.told / self.evaluations

    @property
    def pace(self) -> float:
        """Virtual time per generation."""
        return self.end / max(1, self.generations)

    def value(self, time: float = math.inf) -> float:
        """Return f of the mean, as far as it was known at a time."""
        return next(value for at, value in reversed(self.course) if at <= time)


def simulate(
    sampler: str,
    problem: Problem,
    popsize: int,
    workers: int,
    budget: int,
) -> Run:
    """Let workers run until the budget is asked for, and all have told.

    A sampler with generations goes on with the one that is begun by then.
    """
    allocation._random = random.Random(problem.seed)  # ours chooses among free slots with it
    search = SAMPLERS[sampler](popsize, workers, problem.seed)
    f = problem.function()
    noise = np.random.default_rng([problem.seed, 2])
    times = np.random.default_rng([problem.seed, 3])
    # The one that told last asks first.
    idle, running = [*range(workers)], []
    clock, asked, state = 0.0, 0, search.state()
    course = [(0.0, f(state.mean))]
    while True:
        while idle and search.may_ask(idle[-1], asked >= budget):
            worker = idle.pop()
            trial = search.ask(worker)
            value = f(suggest(trial)) + problem.noise * noise.standard_normal()
            done = clock + times.lognormal(-(SPREAD**2) / 2, SPREAD)
            heapq.heappush(running, (done, asked, worker, trial, value))
            asked += 1
        if not running:
            break
        clock, _, worker, trial, value = heapq.heappop(running)
        search.tell(worker, trial, value)
        idle.append(worker)
        if (after := search.state()) != state:
            state = after
            course.append((clock, f(state.mean)))
    state, told = search.finish()
    course.append((clock, f(state.mean)))
    about = (problem.name, popsize, workers, sampler, problem.seed)
    return Run(*about, asked, told, state.generation, clock, tuple(course))


def cases(quick: bool) -> list[tuple[str, int, int]]:
    """Problems, popsizes and numbers of workers."""
    if quick:
        return [("sphere", 11, w) for w in WORKERS[::2]]
    return [
        *(("sphere", popsize, w) for popsize in POPSIZES for w in WORKERS),
        *(("ellipsoid", 11, w) for w in WORKERS),
        *(("noisy sphere", 11, w) for w in WORKERS[2::2]),
    ]


def runs(quick: bool, seeds: int) -> Iterator[Run]:
    """Simulate all cases; `quick` is fewer of them, and half of the generations."""
    generations = GENERATIONS // 2 if quick else GENERATIONS
    for (name, popsize, workers), seed in product(cases(quick), range(seeds)):
        case = (Problem(name, seed), popsize, workers)
        yield simulate("CmaEsSampler", *case, popsize * generations)
        yield simulate("GenerationalCmaEsSampler", *case, popsize * generations)


def summary(done: list[Run]) -> list[dict[str, Any]]:
    """Median over seeds; the value at the time when the first of the samplers came to its end."""
    rows = []
    for key in dict.fromkeys((r.problem, r.popsize, r.workers) for r in done):
        case = [r for r in done if (r.problem, r.popsize, r.workers) == key]
        seeds = {r.seed for r in case}
        first = {s: min(r.end for r in case if r.seed == s) for s in seeds}
        for sampler in dict.fromkeys(r.sampler for r in case):
            own = [r for r in case if r.sampler == sampler]
            rows.append(
                {
                    **dict(zip(("problem", "popsize", "workers"), key, strict=True)),
                    "sampler": sampler,
                    "seeds": len(own),
                    "evaluations": fmean(r.evaluations for r in own),
                    "used": fmean(r.used for r in own),
                    "least_used": min(r.used for r in own),
                    "time_per_generation": median(r.pace for r in own),
                    "start": median(r.value(0.0) for r in own),
                    "value_at_first_end": median(r.value(first[r.seed]) for r in own),
                    "value_at_end": median(r.value() for r in own),
                    "end": median(r.end for r in own),
                }
            )
    return rows


def table(rows: list[dict[str, Any]]) -> Table:
    """Show the summary."""
    shown = Table(
        title="Evaluations used (CMA-ES was told of them), with W asynchronous workers\n"
        "(virtual time in units of the mean evaluation; f without its noise at CMA-ES's mean, "
        "when all\nhave ended and when the first of the three samplers had; median of the seeds)"
    )
    heads = ("problem", "popsize", "W", "sampler", "evaluations", "used", "time per generation")
    for head in (*heads, "end", "f at first end", "f at end"):
        shown.add_column(head, justify="left" if head in ("problem", "sampler") else "right")
    last = None
    for row in rows:
        case = (row["problem"], str(row["popsize"]), str(row["workers"]))
        shown.add_row(
            *(case if case != last else ("", "", "")),
            row["sampler"],
            f"{row['evaluations']:.0f}",
            f"{row['used']:.0%}",
            f"{row['time_per_generation']:.2f}",
            f"{row['end']:.0f}",
            f"{row['value_at_first_end']:.2g}",
            f"{row['value_at_end']:.2g}",
            end_section=row["sampler"] == list(SAMPLERS)[-1],
        )
        last = case
    return shown


def as_json(run: Run) -> dict[str, Any]:
    """Return a run for a file, without its course."""
    return {k: v for k, v in asdict(run).items() if k != "course"} | {"value": run.value()}
