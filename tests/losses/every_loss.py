"""Every loss of the package, as the contract tests build it."""

import pytest
import torch
from torch import nn

from losses.reference import random_labels, random_logits, random_theta
from optuna_robustloss.losses import (
    AGCELoss,
    AMSELoss,
    ANLCELoss,
    BootstrapLoss,
    ELRLoss,
    EpsilonSoftmaxLoss,
    ForwardCorrectionLoss,
    GCELoss,
    JALCELoss,
    LabelSmoothingLoss,
    MAELoss,
    NCEandAGCELoss,
    NCEandMAELoss,
    NCEandRCELoss,
    NCELoss,
    SCELoss,
    TaylorLoss,
)

CLASSES = 5
TRANSITION = random_logits(9, CLASSES, CLASSES).softmax(-1)
WEIGHT = torch.tensor([0.5, 1.0, 3.0, 0.0, 2.0], dtype=torch.float64)


def taylor(**options):
    return TaylorLoss(random_theta(0), CLASSES, **options)


def elr(**options):
    return ELRLoss(8, CLASSES, **options).eval()  # needs no indices then


#: Losses whose class weights weigh the samples.
WEIGHTED_BY_SAMPLE = {
    "Taylor": taylor,
    "Taylor + CE": lambda **options: taylor(cross_entropy_weight=0.3, **options),
    "Taylor, log": lambda **options: taylor(variable="log", **options),
    "MAE": MAELoss,
    "GCE": GCELoss,
    "SCE": SCELoss,
    "bootstrap-soft": BootstrapLoss,
    "bootstrap-hard": lambda **options: BootstrapLoss(hard=True, **options),
    "forward correction": lambda **options: ForwardCorrectionLoss(TRANSITION, **options),
    "NCE": NCELoss,
    "NCE+MAE": NCEandMAELoss,
    "NCE+RCE": NCEandRCELoss,
    "AGCE": AGCELoss,
    "NCE+AGCE": NCEandAGCELoss,
    "ANL-CE": ANLCELoss,
    "AMSE": AMSELoss,
    "JAL-CE": JALCELoss,
    "ε-softmax": lambda **options: EpsilonSoftmaxLoss(alpha=0.5, m=3.0, **options),
    "ELR": elr,
}
#: Losses that are Σ_k y_k·ℓ_k.
LINEAR = [
    WEIGHTED_BY_SAMPLE[name]
    for name in ("GCE", "forward correction", "NCE", "AGCE", "NCE+AGCE", "ANL-CE")
]
OWN = WEIGHTED_BY_SAMPLE | {"label smoothing": LabelSmoothingLoss}
WITH_PYTORCH = OWN | {"CrossEntropyLoss": nn.CrossEntropyLoss}  # which has to pass, too

every_loss = pytest.mark.parametrize("loss", OWN.values(), ids=OWN)
SHAPES = [
    (CLASSES,),
    (4, CLASSES),
    (4, CLASSES, 3),
    (4, CLASSES, 3, 2),
    (CLASSES, CLASSES, CLASSES),  # as many samples as classes
]


def targets(num_samples=20):
    """Class indices and class probabilities for the same logits ``(N, C)``."""
    soft = random_logits(1, num_samples, CLASSES).softmax(-1)
    return random_labels(1, CLASSES, num_samples), soft
