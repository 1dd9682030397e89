"""Which candidates a search stops before the end: those near chance, and the worst third."""

from __future__ import annotations

import math
from collections.abc import Sequence

#: Smaller populations are not pruned: their worst third depends too much on the seed.
SMALLEST_PRUNED_POPULATION = 6


def worst_third(accuracies: Sequence[float], population: int) -> list[int]:
    """Return the positions of the worst third, without the better half of the population.

    CMA-ES recombines the better half of a population, so at least so many stay, however often it
    is pruned.

    Args:
        accuracies: of the candidates left.
        population: number of candidates at the start.

    >>> worst_third([0.5, 0.1, 0.9, 0.3, 0.7, 0.2], population=6)
    [1, 5]

    """
    if population < SMALLEST_PRUNED_POPULATION:
        return []
    count = min(len(accuracies) // 3, len(accuracies) - math.ceil(population / 2))
    return sorted(range(len(accuracies)), key=lambda i: accuracies[i])[: max(0, count)]


def chance_threshold(num_classes: int) -> float:
    """Return the accuracy that counts as near chance: 1.5 × chance, at most chance + .05.

    With fewer than ten classes 1.5 × chance would be too strict (.75 at C = 2).
    """
    chance = 1 / num_classes
    return chance + min(0.5 * chance, 0.05)
