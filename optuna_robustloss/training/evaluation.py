"""The accuracy of networks during and after training."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from optuna_robustloss.tasks.prepare import LabelledImages
from optuna_robustloss.tasks.recipes import Precision
from optuna_robustloss.training.population.population import Population

#: Images of one evaluation batch times candidates, at most.
_EVALUATION_BATCH = 1000
_SMALLEST_BATCH = 125


@dataclass(frozen=True)
class Evaluation:
    """Accuracies of one network after ``step`` optimiser steps, that is ``epoch`` epochs."""

    step: int
    epoch: float
    accuracy: float
    also: tuple[float, ...] = ()
    """Accuracies on the further images."""


@dataclass(frozen=True)
class TrainingResult:
    """The outcome of one candidate's training."""

    curve: tuple[Evaluation, ...]
    """All evaluations, in order of the steps."""
    diverged: bool = False
    """The loss or the network's output was not finite; training ended there."""
    stopped: bool = False
    model: nn.Module | None = None
    """None unless networks are kept."""

    @property
    def complete(self) -> bool:
        """Whether the training went to its end."""
        return not (self.diverged or self.stopped)


def smoothed_best(curve: Sequence[Evaluation]) -> Evaluation:
    """Return the best point of a moving mean over three evaluations, at the ends over two.

    Raises:
        ValueError: the curve is empty.

    """
    means = []
    for i, point in enumerate(curve):
        window = curve[max(0, i - 1) : i + 2]
        mean = sum(p.accuracy for p in window) / len(window)
        means.append(Evaluation(point.step, point.epoch, mean))
    return max(means, key=lambda evaluation: evaluation.accuracy)


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Run matrix products and convolutions in ``precision`` inside the context."""
    half = precision == "bfloat16"
    # CUDA graphs replay the casts of the weights, which a cache would leave out.
    cached = device.type != "cuda"
    return torch.autocast(device.type, torch.bfloat16, enabled=half, cache_enabled=cached)


@torch.no_grad()
def accuracies(
    population: Population,
    part: LabelledImages,
    device: torch.device,
    precision: Precision = "float32",
) -> tuple[list[float], Tensor]:
    """Return each candidate's accuracy on ``part``, and bool ``(K,)``: all its logits are finite.

    Of a candidate with several networks, whose logits are ``(N, M, C)``, it is their mean accuracy.

    Raises:
        ValueError: there are no images.

    """
    if len(part) == 0:
        raise ValueError("there are no images to evaluate on: set the size of the validation split")
    was_training = population.training
    population.eval()
    labels = part.labels.to(device)
    correct = torch.zeros(population.size, dtype=torch.int64, device=device)
    finite = torch.ones(population.size, dtype=torch.bool, device=device)
    batch = max(_SMALLEST_BATCH, _EVALUATION_BATCH // population.size)
    for index, images in part.images.batches(part.index, batch, device=device):
        with autocast(precision, device):
            logits = population(images)
        predicted = logits.argmax(-1).reshape(population.size, len(images), -1)
        networks, right = predicted.shape[-1], predicted == labels[index][:, None]
        correct += right.flatten(1).sum(-1)
        finite &= torch.isfinite(logits).flatten(1).all(1)
    population.train(was_training)
    return [count / (networks * len(part)) for count in correct.tolist()], finite
