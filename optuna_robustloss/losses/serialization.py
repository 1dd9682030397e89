"""Losses as plain values for JSON, and back: by the name of a known class and its arguments."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from . import files
from .published.asymmetric import AGCELoss, NCEandAGCELoss
from .published.corrected import BootstrapLoss, LabelSmoothingLoss
from .published.epsilon_softmax import EpsilonSoftmaxLoss
from .published.gce_sce_mae import GCELoss, MAELoss, SCELoss
from .published.normalized import ANLCELoss, NCEandMAELoss, NCEandRCELoss, NCELoss
from .scaled import ScaledLoss
from .taylor.loss import TaylorLoss

#: All that a file can name. A class listed here needs an attribute for each of its arguments; those
#: that are made for one training set (``ELRLoss``, ``ForwardCorrectionLoss``) are none of them.
CLASSES: tuple[type[nn.Module], ...] = (
    TaylorLoss,
    ScaledLoss,
    nn.CrossEntropyLoss,
    MAELoss,
    GCELoss,
    SCELoss,
    BootstrapLoss,
    LabelSmoothingLoss,
    NCELoss,
    NCEandRCELoss,
    NCEandMAELoss,
    AGCELoss,
    NCEandAGCELoss,
    ANLCELoss,
    EpsilonSoftmaxLoss,
)
_BY_NAME = {kind.__name__: kind for kind in CLASSES}
#: Arguments that belong to the task at hand: they are given when a file is read, not stored.
OF_THE_TASK = ("reduction", "ignore_index", "weight")
_LOSS = "criterion"  # the one argument that is a loss itself
_DEPRECATED = ("size_average", "reduce")  # by PyTorch; no attributes


def describe(loss: nn.Module) -> dict[str, Any]:
    """Return what ``build`` makes the loss of, ready for JSON.

    Raises:
        ValueError: the loss is not of a class in ``CLASSES``, or holds more than plain values.

    >>> describe(ScaledLoss(GCELoss(q=0.5), 0.2))
    {'class': 'ScaledLoss', 'criterion': {'class': 'GCELoss', 'q': 0.5}, 'scale': 0.2}

    """
    name = type(loss).__name__
    if type(loss) not in CLASSES:
        raise ValueError(
            f"a loss of the class {name} has no place in a file; those that have: "
            f"{', '.join(_BY_NAME)}"
        )
    if isinstance(loss, TaylorLoss):
        return {"class": name} | loss.to_dict()
    values: dict[str, Any] = {"class": name}
    for argument in _arguments(type(loss)):
        value = getattr(loss, argument)
        if not isinstance(value, nn.Module | bool | int | float | str | None):
            raise ValueError(
                f"{argument} of {name} is a {type(value).__name__}, which has no place in a file"
            )
        values[argument] = describe(value) if isinstance(value, nn.Module) else value
    return values


def build(
    stored: object,
    where: str,
    *,
    num_classes: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Return the loss that ``describe`` described.

    Args:
        stored: what was read from a file, whatever that is.
        where: file and field, for messages.
        num_classes: takes the place of the stored one in losses that have it.
        options: arguments named in ``OF_THE_TASK``.

    Raises:
        ValueError: ``stored`` is damaged or names an unknown class; the message says where.

    """
    if not isinstance(stored, dict) or not isinstance(stored.get("class"), str):
        raise ValueError(f"{where} is not a loss: it lacks the name of its class")
    fields, options = dict(stored), dict(options or {})
    name = fields.pop("class")
    kind = _BY_NAME.get(name)
    if kind is None:
        raise ValueError(
            f"{where} is a loss of the unknown class {name!r}; known: {', '.join(_BY_NAME)}. If "
            "the file is right: update optuna-robustloss"
        )
    if kind is TaylorLoss:
        return TaylorLoss.from_dict(files.check_taylor(fields, where), num_classes, **options)
    arguments = _arguments(kind)
    if strange := [field for field in fields if field not in arguments]:
        raise ValueError(f"{where}: {name} has no argument {strange[0]!r}; it has: {arguments}")
    for field, value in fields.items():
        if field == _LOSS:
            fields[field] = build(
                value, f"{where}.{field}", num_classes=num_classes, options=options
            )
        elif not (value is None or isinstance(value, bool | str) or files.is_number(value)):
            raise ValueError(f"{where}: {field} of {name} is no plain value")
    if num_classes is not None and "num_classes" in fields:
        fields["num_classes"] = num_classes
    taken = {n: value for n, value in options.items() if n in inspect.signature(kind).parameters}
    try:
        return kind(**fields, **taken)
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{where}: no {name} can be made of {fields}: {error}") from None


def _arguments(kind: type[nn.Module]) -> list[str]:
    left_out = (*OF_THE_TASK, *_DEPRECATED)
    return [name for name in inspect.signature(kind).parameters if name not in left_out]
