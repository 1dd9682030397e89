"""``suggest_taylor_loss``: the search space in any Optuna objective."""

from __future__ import annotations

from typing import Any, Literal, overload

from optuna.trial import BaseTrial
from pydantic import ValidationError

from optuna_robustloss.losses import PhasedLoss, TaylorLoss
from optuna_robustloss.search.space import SearchSpace, SpaceOptions
from optuna_robustloss.spec_files import describe_errors


@overload
def suggest_taylor_loss(
    trial: BaseTrial,
    num_classes: int,
    *,
    phases: Literal[1] = 1,
    prefix: str | None = None,
    **options: Any,
) -> TaylorLoss: ...


@overload
def suggest_taylor_loss(
    trial: BaseTrial,
    num_classes: int,
    *,
    phases: Literal[2],
    prefix: str | None = None,
    **options: Any,
) -> PhasedLoss: ...


def suggest_taylor_loss(
    trial: BaseTrial,
    num_classes: int,
    *,
    phases: Literal[1, 2] = 1,
    prefix: str | None = None,
    **options: Any,
) -> TaylorLoss | PhasedLoss:
    """Suggest a Taylor loss: twelve ``suggest_float`` calls and a module that takes logits.

    Works with every Optuna sampler and beside any other parameters of the same trial. By default
    the space is the paper's twelve numbers, named ``theta_0`` … ``theta_11``.

    With ``phases=2`` two losses are suggested and the moment when one becomes the other:
    ``early_0`` … ``early_11``, ``late_0`` … ``late_11`` and ``switch``. The ``PhasedLoss`` that is
    returned must know how far the training is: give ``total_steps``, or set its ``progress``.

    Args:
        trial: of any Optuna study.
        num_classes: C of the task.
        phases: 1, or 2 for a loss that changes into another.
        prefix: of the parameters' names; two losses in one trial need two prefixes.
        options: the fields of ``SpaceOptions`` (``eta``, ``cross_entropy_weight``, ``variable``,
            ``coordinates``, ``start``, ``half_width``; with two phases ``late_eta``,
            ``late_cross_entropy_weight``, ``late_start``, ``switch``, ``switch_width``), where a
            pair (low, high) in place of a number adds one log-uniform parameter; and further
            arguments of ``TaylorLoss``, such as ``reduction`` or ``weight``; with two phases those
            of both losses, and ``total_steps``.

    Raises:
        ValueError: an option of the space or of the loss is wrong.

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
    of_space = {n: options.pop(n) for n in SpaceOptions.model_fields if n in options}
    try:
        chosen = SpaceOptions(phases=phases, **of_space)
    except ValidationError as error:
        raise ValueError(describe_errors(error)) from None
    return SearchSpace(chosen, prefix).suggest(trial).build(num_classes, **options)
