"""The coordinates of CMA-ES: every parameter in units of its first standard deviation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution

Numerical = FloatDistribution | IntDistribution
#: One number for every parameter, or numbers by name.
Widths = float | Mapping[str, float]

#: Part of a parameter's range that is its first σ if none is given, as in Optuna's CMA-ES.
_SIGMA_OF_RANGE = 1 / 6


def plain_widths(widths: Widths | None) -> Widths | None:
    """Return widths as Python's own numbers, which JSON has."""
    if isinstance(widths, Mapping):
        return {n: float(v) for n, v in widths.items()}
    return None if widths is None else float(widths)


def numerical_parameters(distributions: Mapping[str, BaseDistribution]) -> dict[str, Numerical]:
    """Return the parameters that CMA-ES can search: numbers with more than one value."""
    return {
        name: d
        for name, d in distributions.items()
        if isinstance(d, FloatDistribution | IntDistribution) and not d.single()
    }


@dataclass(frozen=True)
class ParameterTransform:
    """One parameter: u = (t − ``centre``) / ``sigma``, where t is its value, or its logarithm.

    A parameter with a step, or a whole number, is searched as a real one and rounded; its range is
    half a step wider on both sides, so that the two outer values get their share.
    """

    distribution: Numerical
    centre: float
    sigma: float

    @classmethod
    def of(
        cls, distribution: Numerical, start: float | None = None, sigma: float | None = None
    ) -> ParameterTransform:
        """Make a transform; it starts at the centre with a sixth of the range as σ by default.

        Args:
            distribution: of the parameter.
            start: in the parameter's own units.
            sigma: in the parameter's own units; natural logarithms for a log parameter.

        Raises:
            ValueError: ``start`` is out of range, or ``sigma`` is not a positive number.

        """
        low, high = _interval(distribution)
        centre = (low + high) / 2
        if start is not None:
            if not distribution.low <= start <= distribution.high:
                raise ValueError(
                    f"the start {start} is not within [{distribution.low}, {distribution.high}]"
                )
            centre = _scale(distribution, start)
        if sigma is None:
            sigma = (high - low) * _SIGMA_OF_RANGE
        if not (math.isfinite(sigma) and sigma > 0):
            raise ValueError(f"sigma0 must be a positive number, got {sigma}")
        return cls(distribution, centre, float(sigma))

    @classmethod
    def unit(cls, distribution: Numerical) -> ParameterTransform:
        """Make a transform whose range is [0, 1], as a warm start needs it."""
        low, high = _interval(distribution)
        return cls(distribution, low, high - low)

    @cached_property
    def bounds(self) -> tuple[float, float]:
        """The range of u."""
        low, high = _interval(self.distribution)
        return (low - self.centre) / self.sigma, (high - self.centre) / self.sigma

    def internal(self, value: float) -> float:
        """Return u of a value; values out of range count as the nearest bound."""
        low, high = self.bounds
        inside = min(max(value, self.distribution.low), self.distribution.high)
        return min(max((_scale(self.distribution, inside) - self.centre) / self.sigma, low), high)

    def external(self, u: float) -> float | int:
        """Return the parameter's value at u, within its range and on its grid."""
        d = self.distribution
        t = self.centre + self.sigma * u
        value = math.exp(t) if d.log else t
        if d.step is not None:
            value = d.low + round((value - d.low) / d.step) * d.step
        value = min(max(value, d.low), d.high)
        return int(value) if isinstance(d, IntDistribution) else float(value)


def _interval(d: Numerical) -> tuple[float, float]:
    """Return the range of the value, or of its logarithm, with half a step on both sides."""
    half = 0.0 if d.step is None else d.step / 2
    low, high = d.low - half, d.high + half
    return (math.log(low), math.log(high)) if d.log else (float(low), float(high))


def _scale(d: Numerical, value: float) -> float:
    return math.log(value) if d.log else float(value)


@dataclass(frozen=True)
class SearchSpaceTransform:
    """The coordinates of all parameters, in a fixed order."""

    parameters: Mapping[str, ParameterTransform]

    @classmethod
    def standardised(
        cls,
        space: Mapping[str, Numerical],
        x0: Mapping[str, float] | None = None,
        sigma0: Widths | None = None,
    ) -> SearchSpaceTransform:
        """Make coordinates that start at 0 with σ = 1; see ``GenerationalCmaEsSampler``.

        Raises:
            ValueError: names the parameter whose start or width is wrong.

        """
        parameters = {}
        for name, distribution in space.items():
            sigma = sigma0.get(name) if isinstance(sigma0, Mapping) else sigma0
            try:
                parameters[name] = ParameterTransform.of(distribution, (x0 or {}).get(name), sigma)
            except ValueError as error:
                raise ValueError(f"parameter {name!r}: {error}") from None
        return cls(parameters)

    @classmethod
    def unit(cls, space: Mapping[str, Numerical]) -> SearchSpaceTransform:
        """Make coordinates whose ranges are [0, 1]."""
        return cls({name: ParameterTransform.unit(d) for name, d in space.items()})

    @property
    def bounds(self) -> np.ndarray:
        """Ranges of the coordinates, ``(parameters, 2)``."""
        return np.array([p.bounds for p in self.parameters.values()])

    def internal(self, point: Mapping[str, Any]) -> np.ndarray:
        """Return the coordinates of a point, ``(parameters,)``."""
        return np.array([p.internal(point[name]) for name, p in self.parameters.items()])

    def external(self, u: np.ndarray) -> dict[str, float | int]:
        """Return the point at coordinates ``(parameters,)``."""
        items = zip(self.parameters.items(), u, strict=True)
        return {name: p.external(float(x)) for (name, p), x in items}


def truncated_normal(rng: np.random.RandomState, low: float, high: float) -> float:
    """Draw from N(0, 1) within [low, high]; after a hundred misses, the nearest bound."""
    for _ in range(100):
        u = float(rng.randn())
        if low <= u <= high:
            return u
    return min(max(u, low), high)
