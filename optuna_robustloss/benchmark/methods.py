"""Train with the methods of a benchmark, chosen by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import nn

from optuna_robustloss.benchmark.settings import Settings, method_values
from optuna_robustloss.losses import ELRLoss, PhasedLoss
from optuna_robustloss.losses.registry import make_loss
from optuna_robustloss.losses.scaled import ScaledLoss
from optuna_robustloss.tasks.prepare import Task
from optuna_robustloss.training.evaluation import TrainingResult
from optuna_robustloss.training.forward_correction import train_forward_corrected
from optuna_robustloss.training.jocor import train_jocor
from optuna_robustloss.training.train import steps_per_epoch, train


class Procedure(Protocol):
    """A method that changes the training; ``options`` are its settings and those of ``train``."""

    def __call__(
        self, task: Task, *, seed: int, epochs: int | None, scale: float, **options: Any
    ) -> TrainingResult:
        """Train once."""


#: Methods that change the training.
PROCEDURES: dict[str, Procedure] = {"forward": train_forward_corrected, "jocor": train_jocor}


#: Losses that depend on the training images.
_OF_TASKS = ("elr",)


def _phased(name: str, num_classes: int) -> tuple[PhasedLoss, float] | None:
    """Read ``NAME@LR``: a loss in two phases, and the cumulative learning rate of its switch."""
    base, at, switch = name.rpartition("@")
    if not at or base in ("mae", "mse") or ".json" in switch:  # an @ in a path
        return None
    loss = make_loss(base, num_classes)
    if not isinstance(loss, PhasedLoss) or loss.switch == "adaptive":
        raise ValueError(
            f"{base!r} has no fixed switch: NAME@LR is for losses in two phases that have one, "
            "NAME@ETA for mae and mse"
        )
    try:
        return loss, float(switch)
    except ValueError:
        raise ValueError(f"{switch!r} in the method {name!r} is not a number") from None


def check_method(name: str) -> None:
    """Raise an error unless the method exists.

    Raises:
        ValueError: the name is unknown; the message lists the known ones.
        FileNotFoundError: the loss file does not exist.

    """
    if name in PROCEDURES or name in _OF_TASKS or _phased(name, 2):
        return
    try:
        make_loss(name, num_classes=2)
    except ValueError as error:
        if not str(error).startswith("unknown loss"):
            raise
        further = ", ".join([*PROCEDURES, *_OF_TASKS])
        raise ValueError(f"{error}; as methods also {further}") from None


def make_criterion(
    name: str,
    task: Task,
    scale: float = 1.0,
    *,
    epochs: int | None = None,
    settings: Settings = "published",
) -> nn.Module:
    """Return the loss of a method that changes nothing but the loss, times ``scale``.

    Args:
        name: of ``make_loss``, ``elr``, or ``NAME@LR``: a loss in two phases that switches when the
            cumulative learning rate is LR, whatever the length of the training, over a width in
            proportion.
        task: that is trained on.
        scale: factor of the loss.
        epochs: of the training; by default the recipe's.
        settings: of the loss; see ``benchmark.settings``.

    Raises:
        ValueError: the training ends before the switch.

    """
    loss: nn.Module
    base, times, _ = name.partition("*")
    values: dict[str, Any] = dict(method_values(base, task, settings) or {})
    if name in _OF_TASKS:
        loss = ELRLoss(len(task.train.labels), task.num_classes, **values)
    elif values:
        scale *= values.pop("scale", 1.0)
        if times:
            scale *= float(make_loss(name, task.num_classes).scale)  # type: ignore[arg-type]
        loss = type(make_loss(base, task.num_classes))(**values)
    elif found := _phased(name, task.num_classes):
        usual, switch = found
        assert usual.switch != "adaptive"
        recipe = task.spec.recipe
        loss = PhasedLoss.at_cumulative_lr(
            usual.early,
            usual.late,
            switch=switch,
            width=switch * usual.width / usual.switch,
            lr=recipe.lr,
            total_steps=steps_per_epoch(task) * (epochs or recipe.epochs),
        )
    else:
        loss = make_loss(name, task.num_classes)
    return loss if scale == 1 else ScaledLoss(loss, scale)


def train_methods(
    task: Task,
    methods: Sequence[tuple[str, float]],
    *,
    seed: int,
    epochs: int | None = None,
    settings: Settings = "published",
    **options: Any,
) -> list[TrainingResult]:
    """Train with each of several methods, all losses among them as one population.

    Args:
        task: data, architecture and recipe.
        methods: names and scales.
        seed: of all trainings; see ``train``.
        epochs: by default the recipe's.
        settings: of the methods; see ``benchmark.settings``.
        options: further ones of ``train``.

    Returns:
        the runs, in the order of ``methods``.

    """
    runs: dict[int, TrainingResult] = {}
    plain = [i for i, (name, _) in enumerate(methods) if name not in PROCEDURES]
    if plain:
        criteria = [
            make_criterion(*(methods[i][0], task, methods[i][1]), epochs=epochs, settings=settings)
            for i in plain
        ]
        training = train(task, criteria, seed=seed, epochs=epochs, **options)
        runs.update(zip(plain, training.finish(), strict=True))
    for i, (name, scale) in enumerate(methods):
        if name in PROCEDURES:
            own = dict(method_values(name, task, settings) or {}) | options
            runs[i] = PROCEDURES[name](task, seed=seed, epochs=epochs, scale=scale, **own)
    return [runs[i] for i in range(len(methods))]


def loss_shapes_of(methods: Sequence[str], num_classes: int) -> dict[str, nn.Module]:
    """Return the losses among ``methods`` that depend on logits and label alone.

    One in two phases is in evaluation mode: the late loss.
    """
    return {
        name: make_loss(name, num_classes).eval()
        for name in methods
        if name not in PROCEDURES and name not in _OF_TASKS and not _phased(name, num_classes)
    }
