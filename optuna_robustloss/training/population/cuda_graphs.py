"""CUDA graphs of a training pass: one call launches its hundreds of small kernels."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from optuna_robustloss.training.population.population import Population

_logger = logging.getLogger(__name__)

Pass = Callable[[Tensor, Tensor], Tensor]

#: Passes before recording, for libraries that choose their kernels by trying (PyTorch's notes).
_WARM_UP = 3


class Recorder:
    """Runs passes over batches: records the first, and replays it for others of the same shape.

    A pass takes images and labels, fills the gradients of the population's parameters and returns
    a tensor. It must not read values from the device. After the pattern of "Whole-network
    capture" in PyTorch's notes on CUDA semantics: weights, batch and gradients keep their places
    in memory; the optimiser's step is not recorded, since its learning rate may change.

    Args:
        run: the pass.
        population: whose parameters get the gradients.
        state: returns the further tensors that a pass changes in place.

    """

    def __init__(
        self, run: Pass, population: Population, state: Callable[[], list[Tensor]] = list
    ) -> None:
        self._run, self._population, self._state = run, population, state
        self._is_recordable = True
        self.forget()

    def forget(self) -> None:
        """Drop the graph, because candidates have left or the weights have moved."""
        self._graph: torch.cuda.CUDAGraph | None = None
        self._gradients: list[Tensor | None] = []

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Run the pass; gradients from before are replaced."""
        if self._graph is not None and len(images) > len(self._images):
            self.forget()  # what was recorded is a last, shorter batch
        if self._graph is None and self._is_recordable:
            self._try_to_record(images, labels)
        if self._graph is None or images.shape != self._images.shape:  # a last, shorter batch
            self._clear()
            return self._run(images, labels)
        for parameter, gradient in zip(self._population.parameters(), self._gradients, strict=True):
            parameter.grad = gradient
        self._images.copy_(images)
        self._labels.copy_(labels)
        self._graph.replay()
        return self._result

    def _clear(self) -> None:
        for parameter in self._population.parameters():
            parameter.grad = None

    def _try_to_record(self, images: Tensor, labels: Tensor) -> None:
        buffers = [*self._population.buffers(), *self._state()]
        before = [buffer.clone() for buffer in buffers]
        random = torch.cuda.get_rng_state(images.device)
        try:
            self._record(images, labels)
        except RuntimeError as error:
            self._is_recordable = False
            self.forget()
            _logger.warning("no CUDA graph of this network, it runs kernel by kernel: %s", error)
        # What the passes before have changed is put back: statistics, and the place in the
        # sequence of random numbers.
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)
        torch.cuda.set_rng_state(random, images.device)

    def _record(self, images: Tensor, labels: Tensor) -> None:
        self._images, self._labels = images.clone(), labels.clone()
        side = torch.cuda.Stream(images.device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(images.device))
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                self._clear()
                self._run(self._images, self._labels)
        torch.cuda.current_stream(images.device).wait_stream(side)
        self._clear()  # so that recording places the gradients in the graph's own memory
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._result = self._run(self._images, self._labels)
        self._gradients = [parameter.grad for parameter in self._population.parameters()]
        self._graph = graph
