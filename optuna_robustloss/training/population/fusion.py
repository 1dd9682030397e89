"""Populations with fused layers, and the check that they compute what their networks do.

A network made of layers in ``FUSED_LAYERS`` and of operations on its activations fuses without a
rewrite of its code; ``verify`` checks whether a given one does.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from optuna_robustloss.training.population.fused_layers import FUSED_LAYERS, FusionContext, Layout
from optuna_robustloss.training.population.population import Population


class NotFusableError(ValueError):
    """Raised for a network that cannot be fused; the message names the cause."""


class Fused(Population):
    """K networks of one architecture whose layers are fused one by one.

    All candidates share the dropout masks, which are those of one plain network.

    Args:
        networks: K networks with the same structure, or one several times; they are copied.
        layout: ``"channels"`` lays activations out as ``(N, K·C, H, W)``, for convolutional
            networks; ``"batch"`` as ``(K·N, ...)``, for all others, including those whose own
            code mixes channels.

    Raises:
        NotFusableError: a module with parameters or buffers of its own has an unknown type.
        ValueError: there are no networks, or their structures differ.

    """

    def __init__(self, networks: Sequence[nn.Module], layout: Layout) -> None:
        super().__init__()
        check_alike(networks)
        # In a tuple, so that it is none of this module's children.
        self._template = (copy.deepcopy(networks[0]),)
        self._context = FusionContext(layout)
        self._channels_last = any(
            p.ndim == 4 and p.is_contiguous(memory_format=torch.channels_last)
            for p in networks[0].parameters()
            if not p.is_contiguous()
        )
        self.model = _fused(networks, self._context)
        if next(self.model.parameters(), None) is None:
            raise NotFusableError(f"{type(networks[0]).__name__} has no parameters")

    def forward(self, images: Tensor) -> Tensor:
        """See ``Population``."""
        if self._channels_last:  # the layers go on with the format of the images
            images = images.to(memory_format=torch.channels_last)
        context = self._context
        context.size, context.rows, context.mixed = self.size, images.shape[0], False
        if context.layout == "batch":
            logits: Tensor = self.model(images)
            return torch.unflatten(logits, 0, (context.size, -1))
        with _CandidatewiseCat(context):
            logits = self.model(images)
        return torch.unflatten(logits, 1, (context.size, -1)).transpose(0, 1)

    def network(self, index: int) -> nn.Module:
        """See ``Population``."""
        return plain_copy(self._template[0], self.model, index, training=self.training)


def check_alike(networks: Sequence[nn.Module]) -> None:
    """Raise a ValueError unless all networks have the same parameters and buffers by name."""
    if not networks:
        raise ValueError("a population needs at least one network")
    shapes = [[(name, tuple(t.shape)) for name, t in _tensors(network)] for network in networks]
    for index, other in enumerate(shapes):
        if other != shapes[0]:
            name = next((a or b)[0] for a, b in zip(shapes[0], other, strict=False) if a != b)
            raise ValueError(f"networks 0 and {index} of a population differ at {name!r}")


def _tensors(network: nn.Module) -> list[tuple[str, Tensor]]:
    return [*network.named_parameters(), *network.named_buffers()]


@torch.no_grad()
def plain_copy(template: nn.Module, stacked: nn.Module, index: int, *, training: bool) -> nn.Module:
    """Copy ``template`` with slice ``index`` of the tensors of ``stacked``, in the same order."""
    network = copy.deepcopy(template).train(training)
    mine = (*network.parameters(), *network.buffers())
    theirs = (*stacked.parameters(), *stacked.buffers())
    for tensor, all_of_them in zip(mine, theirs, strict=True):
        tensor.data = torch.empty_like(tensor, device=all_of_them.device)
        tensor.copy_(all_of_them[index])
    return network


def _fused(networks: Sequence[nn.Module], context: FusionContext) -> nn.Module:
    """Copy the first network, with every known layer holding all candidates."""
    fused = copy.deepcopy(networks[0])
    modules = [dict(network.named_modules()) for network in networks]
    stacked: dict[int, Tensor] = {}  # tied tensors stay tied
    for path, module in fused.named_modules():
        plain = [of_network[path] for of_network in modules]
        fused_class = FUSED_LAYERS.get(type(module))
        own = [*module._parameters.values(), *module._buffers.values()]
        if fused_class is None and any(tensor is not None for tensor in own):
            known = ", ".join(sorted({layer.__name__ for layer in FUSED_LAYERS}))
            raise NotFusableError(
                f"{_named(path, module)} has {', '.join([*module._parameters, *module._buffers])} "
                f"of its own and is no layer that can be fused: {known}"
            )
        if fused_class is None:
            continue
        if module._forward_hooks or module._forward_pre_hooks:
            raise NotFusableError(f"{_named(path, module)} has hooks, which no fused layer runs")
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in stacked:
                values = torch.stack([other.get_parameter(name).detach() for other in plain])
                stacked[id(parameter)] = nn.Parameter(values, parameter.requires_grad)
            module._parameters[name] = stacked[id(parameter)]
        for name, buffer in module.named_buffers(recurse=False):
            if id(buffer) not in stacked:
                stacked[id(buffer)] = torch.stack([other.get_buffer(name) for other in plain])
            module._buffers[name] = stacked[id(buffer)]
        module.__class__ = fused_class
        module._context = context
    return fused


def _named(path: str, module: nn.Module) -> str:
    where = repr(path) if path else "the network itself"
    return f"{where} ({type(module).__module__}.{type(module).__qualname__})"


class _CandidatewiseCat(TorchFunctionMode):
    """Concatenates channels for each candidate: ``(N, K·C1, ...)`` with ``(N, K·C2, ...)``."""

    def __init__(self, context: FusionContext) -> None:
        super().__init__()
        self.context = context

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (torch.cat, torch.concat, torch.concatenate) and self.context.mixed:
            tensors, dim = _cat_arguments(*args, **kwargs)
            if tensors[0].ndim > 1 and dim % tensors[0].ndim == 1:
                parts = [torch.unflatten(tensor, 1, (self.context.size, -1)) for tensor in tensors]
                return func(parts, 2).flatten(1, 2)
        return func(*args, **kwargs)


def _cat_arguments(
    tensors: Sequence[Tensor], dim: int = 0, *, axis: int | None = None, **_: Any
) -> tuple[Sequence[Tensor], int]:
    return tensors, dim if axis is None else axis


#: Relative, in double precision; wrong populations deviate by more than .01.
_TOLERANCE = 1e-8


def verify(
    build: Callable[[Sequence[nn.Module]], Population], network: nn.Module, images: Tensor
) -> None:
    """Check on a small population that ``build`` computes what its networks compute.

    Three copies of ``network``, each with other weights, are compared in double precision on the
    first four of ``images (N, ch, H, W)``. The arguments are not changed.

    Raises:
        NotFusableError: the results differ, or the population fails.

    """
    name = type(network).__name__
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            copies = [_perturbed(network) for _ in range(3)]
            inputs = images[:4].detach().to("cpu", torch.float64)
            inputs = inputs + 0.1 * torch.randn_like(inputs)
        found = _deviation(build(copies), copies, inputs)
    except NotFusableError:
        raise
    except Exception as error:  # whatever the network's own code raises first
        raise NotFusableError(f"{name} does not run as a population: {error}") from error
    if not found <= _TOLERANCE:
        raise NotFusableError(
            f"{name} as a population computes something else than its networks: they deviate by "
            f"{found:.2g}, allowed is {_TOLERANCE:.2g}"
        )


@torch.no_grad()
def _perturbed(network: nn.Module) -> nn.Module:
    """Copy a network in double precision with other weights; variances stay positive."""
    other = copy.deepcopy(network).to("cpu", torch.float64)
    for tensor in (*other.parameters(), *other.buffers()):
        if not tensor.is_floating_point():
            continue
        if bool((tensor > 0).all()):
            tensor *= 0.5 + torch.rand_like(tensor)
        else:
            size = tensor.square().mean().sqrt()
            tensor += 0.2 * torch.where(size > 0, size, 1.0) * torch.randn_like(tensor)
    return other


def _deviation(population: Population, networks: Sequence[nn.Module], images: Tensor) -> float:
    """Return the largest relative deviation of a just-built population from its plain networks.

    From the same state of the global generator it compares logits in training mode, the gradients
    of all parameters for random gradients of the logits, parameters and buffers after that, and
    logits in evaluation mode. Gradients and statistics of the arguments change.
    """
    with torch.random.fork_rng(devices=[]):

        def logits(model: nn.Module, training: bool) -> Tensor:
            torch.manual_seed(0)
            out: Tensor = model.train(training)(images)
            return out

        mine = logits(population, True)
        theirs = torch.stack([logits(network, True) for network in networks])
        if mine.shape != theirs.shape:
            return float("inf")
        gradient = torch.randn(theirs.shape, dtype=theirs.dtype)
        torch.autograd.backward(mine, gradient)
        torch.autograd.backward(theirs, gradient)
        with torch.no_grad():
            evaluated = logits(population, False)
            apart = [_relative(mine, theirs)]
            for index, network in enumerate(networks):
                apart.append(_relative(evaluated[index], logits(network, False)))
    for index, network in enumerate(networks):
        apart += _differences(population, population.network(index), network, index)
    return max(apart, key=lambda value: float("inf") if value != value else value)


def _differences(
    population: Population, extracted: nn.Module, network: nn.Module, index: int
) -> Iterable[float]:
    """Yield the deviations of candidate ``index``'s gradients, parameters and buffers."""
    pairs = list(zip(population.parameters(), network.parameters(), strict=True))
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    # A gradient that is zero but for rounding is no measure of its own deviation.
    least = 1e-6 * max((float(g.abs().max()) for g in gradients), default=0.0)
    for stacked, parameter in pairs:
        if (stacked.grad is None) != (parameter.grad is None):
            yield float("inf")
        elif stacked.grad is not None and parameter.grad is not None:
            yield _relative(stacked.grad[index], parameter.grad, least)
    theirs = network.state_dict()
    for name, tensor in extracted.state_dict().items():
        yield _relative(tensor.double(), theirs[name].double())


def _relative(mine: Tensor, theirs: Tensor, least: float = 0.0) -> float:
    """Return the largest difference over the largest value."""
    apart = float((mine - theirs).abs().max())
    return apart / max(float(theirs.abs().max()), least, 1e-30) if apart else 0.0
