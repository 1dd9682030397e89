"""Losses by a short name, as the command line and tables use them."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches

from torch import nn

from .polynomial import MAE_THETA, MSE_THETA
from .robust import GCELoss, MAELoss, ScaledLoss, SCELoss
from .taylor import TaylorLoss
from .zoo import list_losses, load_loss

_HAND_MADE: dict[str, Callable[[], nn.Module]] = {
    "ce": nn.CrossEntropyLoss,
    "mae": MAELoss,
    "gce": GCELoss,
    "sce": SCELoss,
}
_WITH_ETA = {"mae": MAE_THETA, "mse": MSE_THETA}


def _number(text: str, name: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{text!r} in the loss {name!r} is not a number") from None


def make_loss(name: str, num_classes: int) -> nn.Module:
    """Return a loss by name.

    Args:
        name: ``ce``, ``mae``, ``gce`` (q = .7) or ``sce`` (α = .1, β = 1, A = −4) at their
            published settings; ``mae@10`` or ``mse@10``, as Taylor losses of that η; a loss of
            the zoo; or the path of a loss file. ``*0.2`` behind any of them scales it.
        num_classes: C of the task.

    Raises:
        ValueError: an unknown name; the message lists the known ones.
        FileNotFoundError: there is no such loss file.

    >>> make_loss("gce*0.2", num_classes=10).scale
    0.2

    """
    if "*" in name and not name.endswith(".json"):
        base, _, scale = name.rpartition("*")
        return ScaledLoss(make_loss(base, num_classes), _number(scale, name))
    if name in _HAND_MADE:
        return _HAND_MADE[name]()
    member, at, eta = name.partition("@")
    if at and member in _WITH_ETA:
        return TaylorLoss(_WITH_ETA[member], num_classes, eta=_number(eta, name))
    if name.endswith(".json") or name in list_losses():
        return load_loss(name, num_classes)
    known = [*_HAND_MADE, "mae@ETA", "mse@ETA", *list_losses()]
    close = get_close_matches(name, known, n=1)
    raise ValueError(
        f"unknown loss {name!r}"
        + (f", did you mean {close[0]!r}?" if close else "")
        + f" Known: {', '.join(known)}, the path of a .json file, each with *SCALE if wanted"
    )
