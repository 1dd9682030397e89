"""Losses by name, as the command line and the tables use them."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from functools import partial

from torch import nn

from . import published
from .base import check_positive
from .json_files import show_value
from .phased import PhasedLoss
from .scaled import ScaledLoss
from .serialization import load_loss
from .taylor.loss import TaylorLoss
from .taylor.polynomial import CONFIRM_THETA, MAE_THETA, MSE_THETA
from .zoo import list_losses

_PUBLISHED: dict[str, Callable[[], nn.Module]] = {
    "ce": nn.CrossEntropyLoss,
    "mae": published.MAELoss,
    "gce": published.GCELoss,
    "sce": published.SCELoss,
    "bootstrap-soft": published.BootstrapLoss,
    "bootstrap-hard": partial(published.BootstrapLoss, hard=True),
    "label-smoothing": published.LabelSmoothingLoss,
    "nce": published.NCELoss,
    "nce+rce": published.NCEandRCELoss,
    "nce+mae": published.NCEandMAELoss,
    "agce": published.AGCELoss,
    "nce+agce": published.NCEandAGCELoss,
    "anl-ce": published.ANLCELoss,
    "jal-ce": published.JALCELoss,
    "eps-softmax": published.EpsilonSoftmaxLoss,
}
#: Settings published for CIFAR-100, where they differ.
_FROM_100_CLASSES: dict[str, Callable[[], nn.Module]] = {
    "sce": partial(published.SCELoss, alpha=6.0, beta=0.1),
    "nce+rce": partial(published.NCEandRCELoss, alpha=10.0, beta=0.1),
    "nce+mae": partial(published.NCEandMAELoss, alpha=10.0, beta=1.0),
    "nce+agce": partial(published.NCEandAGCELoss, alpha=10.0, beta=0.1, a=1.8, q=3.0),
    "anl-ce": partial(published.ANLCELoss, alpha=10.0, beta=1.0, l1=5e-7),
    "jal-ce": partial(published.JALCELoss, alpha=5.0, a=20.0, l1=5e-6),
    "eps-softmax": partial(published.EpsilonSoftmaxLoss, alpha=0.03, beta=1.0, m=1e4),
}
#: As Taylor losses, whose gradients have a closed form: CE is α with a polynomial of zeros, MAE
#: has the range 2, SCE is α · CE + 4(1 − ŷ_t), and the last is .5(1 − ŷ_t²).
_CE = partial(TaylorLoss, [0.0] * 12, eta=None)
_MAE = partial(TaylorLoss, MAE_THETA)
_PHASED: dict[str, Callable[[int], nn.Module]] = {
    "sce-then-confirm": lambda num_classes: PhasedLoss(
        _MAE(num_classes, eta=4.0, cross_entropy_weight=0.1),
        TaylorLoss(CONFIRM_THETA, num_classes, eta=0.5),
        switch=0.08,
        width=0.04,
    ),
    "ce-then-mae": lambda num_classes: PhasedLoss(
        _CE(num_classes, cross_entropy_weight=0.5),
        _MAE(num_classes, eta=0.2),
        switch=0.04,
        width=0.04,
    ),
}
_WITH_ETA = {"mae": MAE_THETA, "mse": MSE_THETA}


def _positive(text: str, kind: str, name: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError(
            f"{show_value(text)} in the loss {show_value(name)} is not a number"
        ) from None
    check_positive(**{kind: value})
    return value


def list_methods() -> list[str]:
    """Return the names of the published and two-phase losses that ``make_loss`` takes.

    >>> list_methods()[:4]
    ['ce', 'mae', 'gce', 'sce']

    """
    return [*_PUBLISHED, *_PHASED]


def make_loss(name: str, num_classes: int) -> nn.Module:
    """Return a loss by name.

    Args:
        name: one of ``list_methods()``, at its published settings; ``mae@10`` or ``mse@10``, as
            Taylor losses of that η; a loss of the zoo; or the path of a loss file. ``*0.2``
            behind any of them scales it.
        num_classes: C of the task. From 100 on, the settings are those for CIFAR-100.

    The published settings are the defaults of the classes, which say those for CIFAR-100.
    ``anl-ce`` and ``jal-ce`` need an L1 term from the training loop: see ``ANLCELoss``.
    ``sce-then-confirm`` is SCE, which from 8 % to 12 % of the steps changes into ½(1 − ŷ_t²);
    ``ce-then-mae`` is ½ CE, which from 4 % to 8 % of the steps changes into MAE with η = .2.

    Raises:
        ValueError: an unknown name (the message lists the known ones), or a scale or η that is not
            a positive number.
        FileNotFoundError: there is no such loss file.

    >>> make_loss("gce*0.2", num_classes=10).scale
    0.2

    """
    scale = 1.0
    base = name
    while "*" in base and not base.endswith(".json"):
        base, _, factor = base.rpartition("*")
        scale *= _positive(factor, "scale", name)
    if base != name:
        return ScaledLoss(make_loss(base, num_classes), scale)
    if num_classes >= 100 and name in _FROM_100_CLASSES:
        return _FROM_100_CLASSES[name]()
    if name in _PUBLISHED:
        return _PUBLISHED[name]()
    if name in _PHASED:
        return _PHASED[name](num_classes)
    member, at, eta = name.partition("@")
    if at and member in _WITH_ETA:
        return TaylorLoss(_WITH_ETA[member], num_classes, eta=_positive(eta, "eta", name))
    if name.endswith(".json") or name in list_losses():
        return load_loss(name, num_classes)
    known = [*list_methods(), "mae@ETA", "mse@ETA", *list_losses()]
    close = get_close_matches(name[:100], known, n=1)
    raise ValueError(
        f"unknown loss {show_value(name)}"
        + (f", did you mean {close[0]!r}?" if close else "")
        + f" Known: {', '.join(known)}, the path of a .json file, each with *SCALE if wanted"
    )
