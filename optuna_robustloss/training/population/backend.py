"""Backends that train several networks at once, and the choice of the fastest.

Fusing speeds up small networks and GPUs, and no large convolutions on a CPU. So the backends are
timed, once for each network, batch and machine.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import platform
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path
from time import perf_counter, process_time
from typing import Literal, get_args

import timm
import torch
from torch import nn

from optuna_robustloss.tasks.prepare import Task
from optuna_robustloss.tasks.recipes import build_optimizer
from optuna_robustloss.training.evaluation import autocast
from optuna_robustloss.training.population.fusion import Fused, NotFusableError, verify
from optuna_robustloss.training.population.memory import fitting_size, free_bytes, probe_images
from optuna_robustloss.training.population.population import Population, Single
from optuna_robustloss.training.population.vmapped import Vmapped

_logger = logging.getLogger(__name__)

Backend = Literal["separate", "channels", "batch", "vmap"]
#: Fused backends; where both verify, the faster is taken. ``vmap`` is tried if none does.
_FUSED: tuple[Backend, ...] = ("channels", "batch")
#: A fused backend must beat ``"separate"`` by this factor, which exceeds the timing noise.
_MARGIN = 1.1
#: Networks in a timing trial; seconds per backend; minimum of steps.
_TRIAL_SIZE, _TRIAL_SECONDS, _TRIAL_STEPS = 8, 0.3, 3
#: Three networks in double precision, twice, with gradients: per weight.
_BYTES_TO_VERIFY = 14 * 8
#: On a CPU, networks whose step takes longer keep a core busy by themselves.
_LONG_STEP = 0.1


def build(backend: Backend, networks: Sequence[nn.Module]) -> Population:
    """Build a population of copies of ``networks``.

    Raises:
        ValueError: ``backend`` is unknown, or ``"separate"`` with several networks.
        NotFusableError: the backend cannot train this network.

    """
    if backend == "separate":
        if len(networks) != 1:
            raise ValueError(f"separate networks are built one by one, got {len(networks)}")
        return Single(copy.deepcopy(networks[0]))
    if backend == "vmap":
        return Vmapped(networks)
    if backend not in get_args(Backend):
        raise ValueError(f"backend must be one of {get_args(Backend)}, got {backend!r}")
    return Fused(networks, layout=backend)


def verified_backends(model: nn.Module, task: Task) -> list[Backend]:
    """Return the backends that compute what separate networks compute, without ``"separate"``.

    The log names those left out and the reason.
    """
    cpu = torch.device("cpu")
    weights = sum(p.numel() for p in model.parameters())
    if _BYTES_TO_VERIFY * weights > free_bytes(cpu) / 2:
        _logger.warning("%s is too large to be verified as fused", task.spec.architecture)
        return []
    images = probe_images(task, cpu)[:4]
    network = copy.deepcopy(model).cpu()
    good: list[Backend] = []
    for backend in (*_FUSED, "vmap"):
        if backend == "vmap" and good:
            break
        try:
            verify(partial(build, backend), network, images)
        except NotFusableError as error:
            _logger.info("%s cannot be fused (%s): %s", task.spec.architecture, backend, error)
        else:
            good.append(backend)
    if not good:
        _logger.warning(
            "%s cannot be fused: its networks are trained one after another",
            task.spec.architecture,
        )
    return good


def fastest_backend(model: nn.Module, task: Task, count: int, device: torch.device) -> Backend:
    """Return the backend that trains ``count`` networks fastest, from a short timing trial.

    The answer is cached for the process, and for later ones in
    ``$XDG_CACHE_HOME/optuna-robustloss/backends.json``; delete that file to measure again.
    """
    if count <= 1:
        return "separate"
    key = _key(task, count, device)
    if key not in _known:
        _known.update({k: w for k, w in _read_cache().items() if k not in _known})
    if key not in _known:
        _known[key] = _measure(model, task, count, device)
        _write_cache(_known)
    return _known[key]


_known: dict[str, Backend] = {}


def _trial_size(count: int) -> int:
    """Round down to a power of two, so that a shrinking population is not timed at every size."""
    return 1 << (min(count, _TRIAL_SIZE).bit_length() - 1)


def _key(task: Task, count: int, device: torch.device) -> str:
    recipe, cuda = task.spec.recipe, device.type == "cuda"
    parts = (
        task.spec.architecture,
        "x".join(map(str, task.image_shape)),
        f"{task.num_classes} classes",
        f"batch {recipe.batch_size}",
        recipe.optimizer,
        recipe.precision,
        f"{_trial_size(count)} networks",
        torch.cuda.get_device_name(device) if cuda else f"cpu, {torch.get_num_threads()} threads",
        f"torch {torch.__version__}",
        f"timm {timm.__version__}",
        f"optuna-robustloss {version('optuna-robustloss')}",
        platform.node(),
    )
    return ", ".join(parts)


def _measure(model: nn.Module, task: Task, count: int, device: torch.device) -> Backend:
    """Time all backends in turns on random images, and compare their fastest steps."""
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        alone = _Trial(task, build("separate", [model]), device)
        for _ in range(_TRIAL_STEPS):
            alone.run()
        if not cuda and alone.best > _LONG_STEP:
            return "separate"
        size = min(_trial_size(count), fitting_size(model, task, count, device))
        trials: dict[Backend, _Trial] = {"separate": alone}
        for backend in verified_backends(model, task) if size > 1 else []:
            trial = _Trial(task, build(backend, [model] * size), device)
            try:
                trial.run()
            except RuntimeError as error:  # of memory, or of what was not verified: autocast, CUDA
                _logger.warning("%s is left out (%s): %s", task.spec.architecture, backend, error)
            else:
                trials[backend] = trial
        start, rounds = perf_counter(), 0
        while rounds < _TRIAL_STEPS or perf_counter() - start < _TRIAL_SECONDS * len(trials):
            for trial in trials.values():
                trial.run()
            rounds += 1
    seconds = {backend: trial.best / trial.size for backend, trial in trials.items()}
    fastest = min(seconds, key=lambda backend: seconds[backend])
    if seconds[fastest] * _MARGIN > seconds["separate"]:
        fastest = "separate"
    _logger.info(
        "%s: %s; ms per step and network: %s",
        task.spec.architecture,
        fastest,
        ", ".join(f"{backend} {1000 * s:.2f}" for backend, s in seconds.items()),
    )
    return fastest


class _Trial:
    """Times training steps of one population on random images."""

    def __init__(self, task: Task, population: Population, device: torch.device) -> None:
        self._task, self._population, self._device = task, population, device
        self.size = population.size
        self._images = probe_images(task, device)
        self._optimizer = build_optimizer(task.spec.recipe, population.parameters())
        generator = torch.Generator().manual_seed(1)
        shape = (self.size, len(self._images), task.num_classes)
        self._gradient = torch.randn(shape, generator=generator).to(device) * 1e-4
        # Others on the machine interrupt long steps more often than short ones: on a CPU the
        # process's own time counts.
        self._clock = perf_counter if device.type == "cuda" else process_time
        self.best = float("inf")

    def run(self) -> None:
        start = self._clock()
        with autocast(self._task.spec.recipe.precision, self._device):
            logits = self._population(self._images)
        self._optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(logits, self._gradient.to(logits.dtype))
        self._optimizer.step()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self.best = min(self.best, self._clock() - start)


def _cache_file() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "optuna-robustloss" / "backends.json"


def _read_cache() -> dict[str, Backend]:
    try:
        stored = json.loads(_cache_file().read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):  # none yet, damaged, no home: measured again
        return {}
    known = stored.items() if isinstance(stored, dict) else ()
    return {key: backend for key, backend in known if backend in get_args(Backend)}


def _write_cache(backends: dict[str, Backend]) -> None:
    """Add to the file atomically; a directory that cannot be written to is ignored."""
    with suppress(OSError, RuntimeError):
        path = _cache_file()
        path.parent.mkdir(parents=True, exist_ok=True)
        merged = json.dumps(_read_cache() | backends, indent=1, sort_keys=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, suffix=".json")
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(merged)
        Path(temporary).replace(path)
