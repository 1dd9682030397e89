"""Estimates of how many candidates fit into memory together."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import torch
from torch import Tensor, nn

from optuna_robustloss.tasks.prepare import Task
from optuna_robustloss.tasks.recipes import Recipe
from optuna_robustloss.training.evaluation import autocast

#: Share of the free memory that is planned with.
_SHARE = 0.8
#: Activations are kept for the backward pass, whose own gradients and workspace come on top.
_BACKWARD = 2.0


def bytes_per_candidate(model: nn.Module, task: Task, device: torch.device) -> int:
    """Estimate the memory that one more candidate takes while it is trained.

    Weights, gradients, the optimiser's state, and what one forward pass of a batch keeps for the
    backward pass, as measured by running it.
    """
    recipe = task.spec.recipe
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    known = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    images = probe_images(task, device)
    known.add(images.untyped_storage().data_ptr())
    twin = copy.deepcopy(model).train()
    known |= {p.untyped_storage().data_ptr() for p in twin.parameters()}
    cuda = [device] if device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=cuda),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        autocast(recipe.precision, device),
    ):
        logits = twin(images)
        total = sum(kept.values())  # while the graph holds them, no address is used twice
        del logits
    return int(weights * (2 + _states(recipe)) + _BACKWARD * total)


def probe_images(task: Task, device: torch.device) -> Tensor:
    """Return one batch of random images of the task's shape."""
    recipe = task.spec.recipe
    count = min(recipe.batch_size, len(task.train))
    generator = torch.Generator().manual_seed(0)
    return torch.randn(max(2, count), *task.image_shape, generator=generator).to(device)


def _states(recipe: Recipe) -> int:
    """Return the number of values that the optimiser keeps for each weight."""
    states = 2 if recipe.optimizer != "sgd" else int(recipe.momentum > 0)
    return states + (recipe.lookahead_k is not None)


def free_bytes(device: torch.device) -> float:
    """Return the free bytes on ``device``; infinity where the system does not report them."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(free + held)
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return math.inf
    values = dict(line.split(":", 1) for line in lines)
    return float(values["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in values else math.inf


def fitting_size(model: nn.Module, task: Task, count: int, device: torch.device) -> int:
    """Return how many of ``count`` candidates fit into memory together, at least 1."""
    free = free_bytes(device)
    if math.isinf(free):
        return count
    fitting = int(_SHARE * free / bytes_per_candidate(model, task, device))
    return max(1, min(count, fitting))


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error of PyTorch or Python means that memory is exhausted."""
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
