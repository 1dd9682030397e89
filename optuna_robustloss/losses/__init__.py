"""Losses: the searched Taylor family, published ones, the zoo. Needs PyTorch only.

The folder imports nothing of the rest of the package and can be copied out.
"""

from . import published
from .base import ClassificationLoss
from .closed_form import ClosedForm, closed_form
from .phased import PhasedLoss
from .published import *  # noqa: F403
from .registry import list_methods, make_loss
from .scaled import ScaledLoss
from .serialization import load_loss, save_loss
from .taylor.loss import TaylorLoss, taylor_loss
from .taylor.polynomial import (
    CONFIRM_THETA,
    MAE_THETA,
    MSE_THETA,
    canonical,
    canonical_names,
    equivalent,
    from_canonical,
)
from .taylor.range import loss_range
from .zoo import list_losses

__all__ = [
    "CONFIRM_THETA",
    "MAE_THETA",
    "MSE_THETA",
    "ClassificationLoss",
    "ClosedForm",
    "PhasedLoss",
    "ScaledLoss",
    "TaylorLoss",
    "canonical",
    "canonical_names",
    "closed_form",
    "equivalent",
    "from_canonical",
    "list_losses",
    "list_methods",
    "load_loss",
    "loss_range",
    "make_loss",
    "save_loss",
    "taylor_loss",
]
__all__ += published.__all__
