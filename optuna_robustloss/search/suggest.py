"""``suggest_taylor_loss``: the search space in anybody's objective."""

from __future__ import annotations

from typing import Any, Literal, overload

from optuna.trial import BaseTrial

from optuna_robustloss.losses import PhasedLoss, TaylorLoss
from optuna_robustloss.losses.phased import DEFAULT_WIDTH
from optuna_robustloss.losses.taylor.polynomial import Variable
from optuna_robustloss.search.phases import (
    DEFAULT_LATE_ETA,
    DEFAULT_SWITCH,
    Phases,
    search_space,
)
from optuna_robustloss.search.space import (
    DEFAULT_ETA,
    DEFAULT_HALF_WIDTH,
    Coordinates,
    NumberOrRange,
    Start,
)


@overload
def suggest_taylor_loss(
    trial: BaseTrial, num_classes: int, *, phases: Literal[1] = 1, **options: Any
) -> TaylorLoss: ...


@overload
def suggest_taylor_loss(
    trial: BaseTrial, num_classes: int, *, phases: Literal[2], **options: Any
) -> PhasedLoss: ...


def suggest_taylor_loss(
    trial: BaseTrial,
    num_classes: int,
    *,
    phases: Phases = 1,
    prefix: str | None = None,
    eta: NumberOrRange = DEFAULT_ETA,
    cross_entropy_weight: NumberOrRange = 0.0,
    variable: Variable = "probability",
    coordinates: Coordinates = "taylor",
    start: Start = "mae",
    half_width: float = DEFAULT_HALF_WIDTH,
    late_eta: NumberOrRange = DEFAULT_LATE_ETA,
    late_cross_entropy_weight: NumberOrRange = 0.0,
    late_start: Start = "confirm",
    switch: NumberOrRange = DEFAULT_SWITCH,
    switch_width: float = DEFAULT_WIDTH,
    **options: Any,
) -> TaylorLoss | PhasedLoss:
    """Suggest a Taylor loss: twelve ``suggest_float`` calls and a module that takes logits.

    Works with every Optuna sampler and beside any other parameters of the same trial. By default
    the space is the paper's twelve numbers, named ``theta_0`` … ``theta_11``.

    With ``phases=2`` two losses are suggested and the moment when one becomes the other:
    ``early_0`` … ``early_11``, ``late_0`` … ``late_11`` and ``switch``. The ``PhasedLoss`` that is
    returned has to know how far the training is: give ``total_steps``, or set its ``progress``.

    Args:
        trial: of any Optuna study.
        num_classes: C of the task.
        phases: 1, or 2; all that begins with ``late_`` or ``switch`` is for 2.
        prefix: of the parameters' names; two losses in one trial need two prefixes.
        eta: see ``search_space``, as for all further arguments.
        cross_entropy_weight: see ``TaylorSpace``.
        variable: see ``TaylorSpace``.
        coordinates: see ``TaylorSpace``.
        start: see ``TaylorSpace``.
        half_width: see ``TaylorSpace``.
        late_eta: ``eta`` of the late loss.
        late_cross_entropy_weight: ``cross_entropy_weight`` of the late loss.
        late_start: ``start`` of the late loss.
        switch: see ``PhasedSpace``.
        switch_width: ``width`` of ``PhasedSpace``.
        options: further arguments of ``TaylorLoss``, such as ``reduction`` or ``weight``; with
            two phases of both losses, and ``total_steps``.

    Raises:
        ValueError: as ``search_space``, ``TaylorLoss`` and ``PhasedLoss``.

    >>> import optuna, torch
    >>> def objective(trial):
    ...     criterion = suggest_taylor_loss(trial, num_classes=3)
    ...     return criterion(torch.eye(3), torch.arange(3)).item()
    >>> optuna.logging.set_verbosity(optuna.logging.WARNING)
    >>> study = optuna.create_study()
    >>> study.optimize(objective, n_trials=2)
    >>> len(study.trials[0].params)
    12

    """
    space = search_space(
        phases,
        prefix=prefix,
        eta=eta,
        cross_entropy_weight=cross_entropy_weight,
        variable=variable,
        coordinates=coordinates,
        start=start,
        half_width=half_width,
        late_eta=late_eta,
        late_cross_entropy_weight=late_cross_entropy_weight,
        late_start=late_start,
        switch=switch,
        switch_width=switch_width,
    )
    return space.suggest(trial).build(num_classes, **options)
