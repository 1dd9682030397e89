"""Published robust losses, one family a file, as drop-ins for ``nn.CrossEntropyLoss``."""

from .asymmetric import AGCELoss, NCEandAGCELoss
from .corrected import BootstrapLoss, ForwardCorrectionLoss, LabelSmoothingLoss
from .elr import ELRLoss
from .epsilon_softmax import EpsilonSoftmaxLoss
from .gce_sce_mae import GCELoss, MAELoss, SCELoss
from .joint_asymmetric import AMSELoss, JALCELoss
from .normalized import ANLCELoss, NCEandMAELoss, NCEandRCELoss, NCELoss

__all__ = [
    "AGCELoss",
    "AMSELoss",
    "ANLCELoss",
    "BootstrapLoss",
    "ELRLoss",
    "EpsilonSoftmaxLoss",
    "ForwardCorrectionLoss",
    "GCELoss",
    "JALCELoss",
    "LabelSmoothingLoss",
    "MAELoss",
    "NCELoss",
    "NCEandAGCELoss",
    "NCEandMAELoss",
    "NCEandRCELoss",
    "SCELoss",
]
