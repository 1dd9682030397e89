"""The one training loop: a network, a task, a loss, and its accuracy along the way."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn

from optuna_robustloss.tasks.models import build_model
from optuna_robustloss.tasks.prepare import LabelledImages, Task
from optuna_robustloss.tasks.recipes import build_optimizer
from optuna_robustloss.tasks.seeds import derive_seed

#: A candidate is judged hopeless once, after this share of its steps.
HOPELESS_AFTER = Fraction(7, 100)  # exact: the float .07 × 100 rounds up to 8 steps
_EVALUATION_BATCH = 1000


@dataclass(frozen=True)
class Point:
    """A moment of a run: after ``step`` optimiser steps, that is ``epoch`` epochs."""

    step: int
    epoch: float
    accuracy: float


@dataclass(frozen=True)
class Run:
    """What came of one training run."""

    model: nn.Module
    curve: tuple[Point, ...]
    """Accuracy on the images that were watched, in order of the steps."""
    diverged: bool
    """The loss or the network's output was not finite; training stopped there."""
    hopeless: bool
    """Accuracy was near chance after 7 % of the steps; training stopped there."""


def hopeless_below(num_classes: int) -> float:
    """Accuracy under which a candidate is given up: 1.5 × chance, or chance + .05 if that is less.

    With fewer than ten classes 1.5 × chance would be too strict (.75 at C = 2).
    """
    chance = 1 / num_classes
    return chance + min(0.5 * chance, 0.05)


def steps_per_epoch(task: Task) -> int:
    """Optimiser steps that one pass over the training images takes."""
    return math.ceil(len(task.train) / task.spec.recipe.batch_size)


def default_device() -> torch.device:
    """CUDA where there is a device, otherwise the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@torch.no_grad()
def evaluate(model: nn.Module, part: LabelledImages, device: torch.device) -> tuple[float, bool]:
    """Return the accuracy on ``part`` and whether all logits were finite."""
    if len(part) == 0:
        raise ValueError("there are no images to evaluate on: set the size of the validation split")
    was_training = model.training
    model.eval()
    labels = part.labels.to(device)
    correct = torch.zeros((), dtype=torch.int64, device=device)
    finite = torch.ones((), dtype=torch.bool, device=device)
    for index, images in part.images.batches(part.index, _EVALUATION_BATCH, device=device):
        logits = model(images)
        correct += (logits.argmax(-1) == labels[index]).sum()
        finite &= torch.isfinite(logits).all()
    model.train(was_training)
    return int(correct) / len(part), bool(finite)


def _initial_model(task: Task, seed: int, device: torch.device) -> nn.Module:
    """Build on the CPU, so that every host starts from the same weights, and move."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, "init"))
        model = build_model(
            task.spec.architecture,
            num_classes=task.num_classes,
            image_shape=task.image_shape,
            pretrained=task.spec.pretrained,
        )
    model = model.to(device)
    if any(isinstance(module, nn.Conv2d) for module in model.modules()):
        model = model.to(memory_format=torch.channels_last)
    return model


@contextmanager
def _denormals_flushed() -> Iterator[None]:
    """Denormal momentum slows SGD on CPUs; the caller's arithmetic keeps its own."""
    before = sys.float_info.min / 2 == 0.0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def train(
    task: Task,
    criterion: nn.Module,
    *,
    seed: int,
    watch: LabelledImages,
    watch_at: Iterable[int],
    epochs: int | None = None,
    device: torch.device | None = None,
    observe: Callable[[Point], None] | None = None,
    give_up: bool = True,
) -> Run:
    """Train one network from scratch by the task's recipe, and watch its accuracy.

    The seed decides initial weights, batch order, augmentation and dropout, independently of the
    loss: candidates with the same seed differ in their loss only. A loss with an attribute
    ``progress`` is told before each step which share of the steps is done, from 0 to 1.

    Args:
        task: data, architecture and recipe.
        criterion: called as ``criterion(logits, labels)``, returns a scalar.
        seed: see above.
        watch: the images whose accuracy is measured: validation in a search, test in a comparison.
        watch_at: numbers of steps after which it is measured; the last step always is.
        epochs: by default the recipe's.
        device: by default CUDA where there is a device.
        observe: called with every measured point; what it raises ends the run.
        give_up: stop a run that is near chance after 7 % of its steps. A run whose loss is no
            longer finite always stops.

    Raises:
        ValueError: there is nothing to watch, or the network does not fit the images.

    """
    device = device or default_device()
    recipe = task.spec.recipe
    per_epoch = steps_per_epoch(task)
    total = per_epoch * (epochs or recipe.epochs)
    check_at = math.ceil(HOPELESS_AFTER * total) if give_up else -1
    watched = {*watch_at, total, check_at}
    model = _initial_model(task, seed, device)
    optimizer = build_optimizer(recipe, model.parameters())
    order = torch.Generator().manual_seed(derive_seed(seed, "order"))
    augment = torch.Generator().manual_seed(derive_seed(seed, "augment"))
    labels = task.train.labels.to(device)
    criterion = criterion.to(device)
    tells_progress = hasattr(criterion, "progress")
    curve: list[Point] = []
    step = 0

    def measure() -> tuple[float, bool]:
        accuracy, finite = evaluate(model, watch, device)
        curve.append(Point(step, step / per_epoch, accuracy))
        if observe is not None:
            observe(curve[-1])
        return accuracy, finite

    cuda = [device] if device.type == "cuda" else []
    with _denormals_flushed(), torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(derive_seed(seed, "dropout"))
        if cuda:
            torch.cuda.manual_seed(derive_seed(seed, "dropout"))
        model.train()
        while step < total:
            shuffled = task.train.index[torch.randperm(len(task.train), generator=order)]
            loss = None
            for index, images in task.train.images.batches(
                shuffled,
                recipe.batch_size,
                device=device,
                augment=augment if recipe.augment else None,
            ):
                if not recipe.constant_lr:
                    for group in optimizer.param_groups:
                        group["lr"] = recipe.lr_at(step / total)
                if tells_progress:
                    criterion.progress = step / total  # type: ignore[assignment]
                loss = _step(model, optimizer, criterion, images, labels[index])
                step += 1
                if step not in watched:
                    continue
                accuracy, finite = measure()
                if not finite:
                    return Run(model, tuple(curve), diverged=True, hopeless=False)
                if step == check_at and accuracy < hopeless_below(task.num_classes):
                    return Run(model, tuple(curve), diverged=False, hopeless=True)
            if loss is not None and not torch.isfinite(loss):
                if step not in watched:
                    measure()
                return Run(model, tuple(curve), diverged=True, hopeless=False)
    return Run(model, tuple(curve), diverged=False, hopeless=False)


def _step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    criterion: nn.Module,
    images: Tensor,
    labels: Tensor,
) -> Tensor:
    if images.shape[0] == 1:
        model.eval()  # batch normalisation cannot train on a single image
    loss: Tensor = criterion(model(images), labels)
    if images.shape[0] == 1:
        model.train()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.detach()
