"""Types of a benchmark: run, evaluations, result, and accuracy under a regime."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Pick = Literal["last", "best"]


@dataclass(frozen=True, order=True)
class Run:
    """Parameters of one training."""

    method: str
    """Short name, such as ``gce``."""
    task: str
    """Label of the task, such as ``mnist/mlp2/symmetric 80 %``."""
    seed: int
    """Repetition, from 0: determines noise, split, initial weights and batch order."""
    scale: float = 1.0
    """Factor of the loss, with Adam of the learning rate; 1 is the published form."""
    horizon: float = 1.0
    """Length of the training, as a multiple of the recipe's epochs."""
    schedule: str = "recipe"
    """Learning rate: as in the recipe, ``constant`` or ``cosine``."""

    @property
    def native(self) -> bool:
        """Whether loss and recipe are as published."""
        return (self.scale, self.horizon, self.schedule) == (1.0, 1.0, "recipe")


@dataclass(frozen=True)
class RunEvaluation:
    """Accuracies in [0, 1] after ``step`` optimiser steps; None without such images."""

    step: int
    epoch: float
    cumulative_lr: float
    """Sum of the learning rates of the steps so far: lr × steps, if it is constant."""
    test: float
    """On test images with clean labels."""
    clean: float | None
    """On validation images with clean labels."""
    few: float | None
    """On the first ``few`` of these."""
    noisy: float | None
    """On the same validation images with noisy labels."""
    memorised: float | None
    """Share of the wrongly labelled training images for which the network gives the wrong label."""


@dataclass(frozen=True)
class RunResult:
    """The evaluations of one run."""

    run: Run
    curve: tuple[RunEvaluation, ...]
    """In order of the steps; the last is the end of the training."""
    diverged: bool = False
    """The loss was not finite, and training stopped there."""


@dataclass(frozen=True)
class Measured:
    """A test accuracy under a regime, which chooses scale and epoch."""

    method: str
    dataset: str
    """Of the task: tasks on the same images are not independent."""
    task: str
    seed: int
    regime: str
    """``native``, ``blind``, ``clean 1000`` (validation labels), ``clean 200``, ``noisy 1000``."""
    pick: Pick
    """The accuracy is of the last epoch, or of the one that validation says is best."""
    accuracy: float
    """In [0, 1], on test images with clean labels."""
    scale: float
    epoch: float
    horizon: float = 1.0
    schedule: str = "recipe"
