"""``suggest_taylor_loss``: the search space in any Optuna objective."""

from __future__ import annotations

from typing import Any, Literal

from optuna.trial import BaseTrial
from pydantic import ValidationError
from torch import Tensor

from optuna_robustloss.losses import PhasedLoss, TaylorLoss
from optuna_robustloss.losses.base import Reduction
from optuna_robustloss.losses.phased import DEFAULT_WIDTH
from optuna_robustloss.losses.taylor.polynomial import Variable
from optuna_robustloss.search.space import (
    Coordinates,
    NumberOrRange,
    SearchSpace,
    SpaceOptions,
    Start,
)
from optuna_robustloss.spec_files import describe_errors


def suggest_taylor_loss(
    trial: BaseTrial,
    num_classes: int,
    *,
    prefix: str | None = None,
    phases: Literal[1, 2, "adaptive"] = 1,
    eta: NumberOrRange = 10.0,
    cross_entropy_weight: NumberOrRange = 0.0,
    variable: Variable = "probability",
    coordinates: Coordinates = "taylor",
    start: Start = "mae",
    half_width: float = 3.0,
    late_eta: NumberOrRange = 0.5,
    late_cross_entropy_weight: NumberOrRange = 0.0,
    late_start: Start = "confirm",
    switch: NumberOrRange = (0.02, 0.32),
    switch_width: float = DEFAULT_WIDTH,
    adaptive_after: NumberOrRange = (1.0, 4.0),
    adaptive_guard: NumberOrRange = (0.005, 0.08),
    adaptive_averaging: NumberOrRange = 50.0,
    adaptive_width: NumberOrRange = 0.5,
    reduction: Reduction = "mean",
    ignore_index: int = -100,
    weight: Tensor | None = None,
    total_steps: int | None = None,
    lr: float | None = None,
) -> TaylorLoss | PhasedLoss:
    """Suggest a Taylor loss: twelve ``suggest_float`` calls and a module that takes logits.

    Works with every Optuna sampler and beside any other parameters of the same trial. By default
    the space is the paper's twelve numbers, named ``theta_0`` … ``theta_11`` (Gao et al.,
    "Searching for Robustness", Eq. 4 and 5).

    With ``phases=2`` two losses are suggested, ``early_0`` … ``early_11`` and ``late_0`` …
    ``late_11``, and the ``switch`` from one to the other. The returned ``PhasedLoss`` needs the
    progress of the training: give ``total_steps``, or set its ``progress``.

    Args:
        trial: of any Optuna study.
        num_classes: C of the task.
        prefix: of the parameters' names; two losses in one trial need two prefixes.
        phases: 1, 2 for a loss that changes into another at ``switch``, or ``"adaptive"`` for one
            that changes when the batches tell, with the parameters ``after`` and ``guard``.
        eta: range of the loss (Eq. 5). Here as in the other arguments with a default number, a
            pair (low, high) adds one log-uniform parameter.
        cross_entropy_weight: α of "normalised polynomial + α · cross-entropy"; number or pair.
        variable: what the polynomials are written in; see ``taylor_loss``.
        coordinates: ``"taylor"``, the paper's twelve, or ``"canonical"``, the six (seven for the
            log variable) that the gradient depends on.
        start: loss at the centre of the space: ``"mae"``, ``"mse"``, ``"sce"`` or ``"confirm"``.
        half_width: each coefficient lies within ± this of the start's.
        late_eta: ``eta`` of the late loss; this and the next four need ``phases=2``.
        late_cross_entropy_weight: ``cross_entropy_weight`` of the late loss.
        late_start: ``start`` of the late loss.
        switch: share of the steps after which the change begins; number or pair.
        switch_width: share of the steps that the change takes.
        adaptive_after: cumulative learning rate before which the change does not start; number or
            pair, like the next three, which all need ``phases="adaptive"``.
        adaptive_guard: rise of agreement/confidence above its minimum at which it starts.
        adaptive_averaging: length of the moving averages in steps.
        adaptive_width: length of the change, as a multiple of ``adaptive_after``.
        reduction: as in ``nn.CrossEntropyLoss``.
        ignore_index: as in ``nn.CrossEntropyLoss``.
        weight: ``(C,)``, as in ``nn.CrossEntropyLoss``.
        total_steps: optimiser steps of the training, with ``phases=2``.
        lr: learning rate, with ``phases="adaptive"``; see ``PhasedLoss``.

    Raises:
        ValueError: an argument is out of its domain, or needs ``phases=2``.

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
    given = locals()
    try:
        chosen = SpaceOptions(**{name: given[name] for name in SpaceOptions.model_fields})
    except ValidationError as error:
        raise ValueError(describe_errors(error)) from None
    of_loss: dict[str, Any] = {
        "reduction": reduction,
        "ignore_index": ignore_index,
        "weight": weight,
    }
    if phases == 2:
        of_loss["total_steps"] = total_steps
    elif total_steps is not None:
        raise ValueError("total_steps is an option of phases=2")
    if phases == "adaptive":
        of_loss["lr"] = lr
    elif lr is not None:
        raise ValueError('lr is an option of phases="adaptive"')
    return SearchSpace(chosen, prefix).suggest(trial).build(num_classes, **of_loss)
