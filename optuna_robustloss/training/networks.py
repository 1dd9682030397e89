"""The networks that a training starts from."""

from __future__ import annotations

import torch
from torch import nn

from optuna_robustloss.seeds import derive_seed
from optuna_robustloss.tasks.models import build_model
from optuna_robustloss.tasks.prepare import Task


def default_device() -> torch.device:
    """Return CUDA where there is a device, otherwise the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def initial_model(task: Task, seed: int, part: str = "init") -> nn.Module:
    """Build the task's network on the CPU, so that every host starts from the same weights.

    Args:
        task: gives the architecture, the classes and the shape of the images.
        seed: determines the weights.
        part: distinguishes several networks of one training.

    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, part))
        return build_model(
            task.spec.architecture,
            num_classes=task.num_classes,
            image_shape=task.image_shape,
            pretrained=task.spec.pretrained,
        )


def move_to_device(model: nn.Module, device: torch.device) -> nn.Module:
    """Move a network to ``device``, convolutions to channels-last, the fastest layout."""
    model = model.to(device)
    if any(isinstance(module, nn.Conv2d) for module in model.modules()):
        model = model.to(memory_format=torch.channels_last)
    return model
