"""CMA-ES as a pure function of the generations told: the same on every host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from cmaes import CMA, SepCMA

from optuna_robustloss.sampler.transform import (
    ParameterTransform,
    SearchSpaceTransform,
    truncated_normal,
)
from optuna_robustloss.seeds import derive_seed


def _rng_seed(seed: int, *path: int | str) -> int:
    return derive_seed(seed, "candidate", *path) % 2**32


def first_draw(
    seed: int, generation: int, slot: int, name: str, parameter: ParameterTransform
) -> float | int:
    """Draw one parameter of a candidate before CMA-ES was told anything.

    CMA-ES starts with independent coordinates, so each can be drawn on its own, before the other
    parameters' names are known.
    """
    rng = np.random.RandomState(_rng_seed(seed, generation, slot, name))
    return parameter.external(truncated_normal(rng, *parameter.bounds))


@dataclass(frozen=True)
class StartDistribution:
    """Where a warm-started search begins, in units of each parameter's range."""

    mean: tuple[float, ...]
    sigma: float
    covariance: tuple[tuple[float, ...], ...]


class GenerationalCma:
    """The state of CMA-ES after the generations told so far.

    Args:
        transform: the coordinates of the parameters.
        popsize: candidates per generation.
        seed: of all candidates.
        start: of a warm-started search; without one it starts at 0 with σ = 1.
        lr_adapt: adapt the learning rates to the noise (Nomura et al. 2023).
        separable: search with a diagonal covariance (Ros and Hansen 2008).

    """

    def __init__(
        self,
        transform: SearchSpaceTransform,
        popsize: int,
        seed: int,
        *,
        start: StartDistribution | None = None,
        lr_adapt: bool = False,
        separable: bool = False,
    ) -> None:
        self.transform = transform
        self.popsize = popsize
        self.seed = seed
        self.generation = 0
        self.converged = False
        self._warm = start is not None
        dimensions = len(transform.parameters)
        self._origin = np.zeros(dimensions) if start is None else np.array(start.mean)
        options: dict[str, Any] = {
            "mean": self._origin.copy(),
            "sigma": 1.0 if start is None else start.sigma,
            "bounds": transform.bounds,
            "n_max_resampling": 10 * dimensions,
            "population_size": popsize,
            "seed": 0,  # every candidate sets its own
        }
        if separable:
            self._cma: CMA | SepCMA = SepCMA(**options)
        else:
            covariance = None if start is None else np.array(start.covariance)
            self._cma = CMA(**options, cov=covariance, lr_adapt=lr_adapt)

    @property
    def mean(self) -> dict[str, float | int]:
        """The mean of the distribution the next generation is drawn from."""
        return self.transform.external(self._cma.mean)

    @property
    def state(self) -> tuple[bytes, ...]:
        """Mean, step size and covariance, bit for bit, to compare two states."""
        names = ("_mean", "_sigma", "_C", "_p_sigma", "_pc")
        return tuple(np.asarray(getattr(self._cma, n)).tobytes() for n in names)

    def candidate(self, slot: int) -> dict[str, float | int]:
        """Return the candidate of a slot of the present generation."""
        if self.generation == 0 and not self._warm:
            return {
                name: first_draw(self.seed, 0, slot, name, parameter)
                for name, parameter in self.transform.parameters.items()
            }
        self._cma.reseed_rng(_rng_seed(self.seed, self.generation, slot))
        return self.transform.external(self._cma.ask())

    def tell(self, points: Sequence[Mapping[str, Any]]) -> None:
        """Update the distribution with a whole generation, best candidate first.

        Once CMA-ES has converged (the step is below the resolution of the numbers) the
        distribution stays as it is.

        Raises:
            ValueError: not ``popsize`` points.

        """
        if len(points) != self.popsize:
            raise ValueError(f"a generation has {self.popsize} candidates, got {len(points)}")
        self.generation += 1
        if self.converged:
            return
        before = {
            k: v.copy() if isinstance(v, np.ndarray) else v for k, v in vars(self._cma).items()
        }
        with np.errstate(all="ignore"):
            # CMA-ES uses the order of the values only, so their ranks do.
            self._cma.tell(
                [(self.transform.internal(p), float(rank)) for rank, p in enumerate(points)]
            )
            finite = all(np.isfinite(np.frombuffer(part)).all() for part in self.state)
            self.converged = not finite or self._cma.should_stop()
        if not finite:  # all candidates were the same point
            vars(self._cma).update(before)
