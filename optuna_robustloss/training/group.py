"""Candidates that are trained together: one population, one optimiser, one stream of batches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from optuna_robustloss.seeds import derive_seed
from optuna_robustloss.tasks.prepare import LabelledImages, Task
from optuna_robustloss.tasks.recipes import build_optimizer
from optuna_robustloss.training.evaluation import Evaluation, accuracies, autocast
from optuna_robustloss.training.gradients import LossGradients, TaylorGradients
from optuna_robustloss.training.population.cuda_graphs import Pass, Recorder
from optuna_robustloss.training.population.population import (
    Population,
    add_l1,
    clip_gradients,
    extend_state,
    keep_state,
    optimizer_state_to,
)

Observer = Callable[[int, Evaluation], None]


@dataclass(frozen=True)
class Plan:
    """What all groups of one training have in common."""

    task: Task
    seed: int
    device: torch.device
    total: int
    per_epoch: int
    watch: LabelledImages
    also: Sequence[LabelledImages]
    watched: Collection[int]
    observe: Observer | None
    models: bool
    """Keep the networks of candidates that end."""


@dataclass(eq=False)
class Candidate:
    """One loss on its way: what is known of its network."""

    index: int
    curve: list[Evaluation] = field(default_factory=list)
    diverged: bool = False
    hopeless: bool = False
    dropped: bool = False
    error: Exception | None = None
    model: nn.Module | None = None
    told: int = 0
    """The last step that the observer was told."""


class Group:
    """Trains its candidates from one step to another; those that end early leave it.

    Groups of one plan see the same batches and draw the same random numbers, however many
    candidates they have, so that a candidate does not depend on its company.
    """

    def __init__(
        self,
        plan: Plan,
        candidates: Sequence[Candidate],
        population: Population,
        gradients: LossGradients,
    ) -> None:
        self.plan = plan
        self.candidates = list(candidates)
        self.population = population
        self.gradients = gradients
        self.step = 0
        recipe = plan.task.spec.recipe
        self._optimizer = build_optimizer(recipe, population.parameters())
        self._labels = plan.task.train.labels.to(plan.device)
        self._batches = self._stream()
        self._random = _Random(derive_seed(plan.seed, "dropout"), plan.device)
        self._finite = torch.ones(len(candidates), dtype=torch.bool, device=plan.device)
        self._pass: Pass = self._forward_backward
        if plan.device.type == "cuda" and isinstance(gradients, TaylorGradients):
            self._pass = Recorder(self._forward_backward, population)

    def advance(self, until: int) -> None:
        """Train up to step ``until``, and measure where the plan says so."""
        plan = self.plan
        self._move(plan.device)
        self.population.train()
        with _denormals_flushed(), self._random.used():
            while self.step < until and self.candidates:
                self._train_step()
                finite = None
                if self.step in plan.watched:
                    finite = self._measure()
                if self.step % plan.per_epoch == 0:
                    finite = self._finite if finite is None else finite & self._finite
                if finite is not None and not bool(finite.all()):
                    self._end_diverged(finite)

    def leave(self, leaving: Collection[Candidate]) -> None:
        """Go on without the candidates ``leaving``."""
        if self.plan.models:
            for position, candidate in enumerate(self.candidates):
                if candidate in leaving:
                    candidate.model = self.population.network(position)
        stay = [i for i, c in enumerate(self.candidates) if c not in leaving]
        if len(stay) == len(self.candidates):
            return
        self.candidates = [self.candidates[i] for i in stay]
        self._finite = self._finite[stay]
        if stay:
            self._forget()
            keep_state(self._optimizer, stay)
            self.population.keep(stay)
            self.gradients.keep(stay)

    def absorb(self, other: Group) -> None:
        """Take over the candidates of a group that has come as far."""
        assert other.step == self.step
        self._forget()
        extend_state(self._optimizer, other._optimizer)
        self.population.extend(other.population)
        self.gradients.extend(other.gradients)
        self.candidates += other.candidates
        self._finite = torch.cat([self._finite, other._finite])

    def park(self) -> None:
        """Make room on the device while another group trains there."""
        self._move(torch.device("cpu"))

    def _forget(self) -> None:
        """The tensors are about to change."""
        if isinstance(self._pass, Recorder):
            self._pass.forget()

    def _move(self, device: torch.device) -> None:
        if next(self.population.parameters()).device.type != device.type:
            self._forget()
            self.population.to(device)
            optimizer_state_to(self._optimizer, device)

    def _stream(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of all epochs, the same for every group."""
        plan = self.plan
        train, recipe = plan.task.train, plan.task.spec.recipe
        order = torch.Generator().manual_seed(derive_seed(plan.seed, "order"))
        augment = torch.Generator().manual_seed(derive_seed(plan.seed, "augment"))
        while True:
            yield from train.images.batches(
                train.index[torch.randperm(len(train), generator=order)],
                recipe.batch_size,
                device=plan.device,
                augment=augment if recipe.augment else None,
            )

    def _forward_backward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Fill the gradients, and return which candidates' losses are finite."""
        self._optimizer.zero_grad(set_to_none=True)
        with autocast(self.plan.task.spec.recipe.precision, self.plan.device):
            logits = self.population(images)
        gradient, finite = self.gradients(logits.detach(), labels)
        torch.autograd.backward(logits, gradient)
        return finite

    def _train_step(self) -> None:
        recipe = self.plan.task.spec.recipe
        progress = self.step / self.plan.total
        if not recipe.constant_lr:
            for group in self._optimizer.param_groups:
                group["lr"] = recipe.lr_at(progress)
        self.gradients.set_progress(progress)
        index, images = next(self._batches)
        self.gradients.set_index(index)
        alone = images.shape[0] == 1  # batch normalisation cannot train on a single image
        if alone:
            self.population.eval()
        self._finite = self._pass(images, self._labels[index])
        if alone:
            self.population.train()
        if any(self.gradients.l1):
            add_l1(self.population, self.gradients.l1)
        if recipe.clip_grad_norm is not None:
            clip_gradients(self.population, recipe.clip_grad_norm)
        self._optimizer.step()
        self.step += 1

    def _measure(self, only: Collection[Candidate] | None = None) -> Tensor:
        """Watch every candidate, or some; one whose observer raises an exception leaves.

        Returns:
            whether the logits of those that are left are finite.

        """
        plan = self.plan
        recipe = plan.task.spec.recipe
        values, finite = accuracies(self.population, plan.watch, plan.device, recipe.precision)
        others = [
            accuracies(self.population, part, plan.device, recipe.precision)[0]
            for part in plan.also
        ]
        failed = []
        for position, candidate in enumerate(self.candidates):
            if only is not None and candidate not in only:
                continue
            also = tuple(other[position] for other in others)
            point = Evaluation(self.step, self.step / plan.per_epoch, values[position], also)
            candidate.curve.append(point)
            if plan.observe is None or self.step <= candidate.told:
                continue
            candidate.told = self.step
            try:
                plan.observe(candidate.index, point)
            except Exception as error:  # it ends this candidate, and no other
                candidate.error = error
                failed.append(candidate)
        if failed:
            finite = finite[[i for i, c in enumerate(self.candidates) if c not in failed]]
            self.leave(failed)
        return finite

    def _end_diverged(self, finite: Tensor) -> None:
        """End the candidates that are not finite, where they are."""
        pairs = zip(self.candidates, finite.tolist(), strict=True)
        ended = [candidate for candidate, fine in pairs if not fine]
        if self.step not in self.plan.watched:  # for the others this is no moment to be measured
            self._measure(ended)
            ended = [candidate for candidate in ended if candidate.error is None]
        for candidate in ended:
            candidate.diverged = True
        self.leave(ended)


class _Random:
    """The state of PyTorch's global generators as one group sees them."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self._cuda = [device] if device.type == "cuda" else []
        with self._current(), torch.random.fork_rng(devices=self._cuda):
            torch.default_generator.manual_seed(seed)
            if self._cuda:
                torch.cuda.manual_seed(seed)
            self._states = self._read()

    def _current(self) -> AbstractContextManager[object]:
        """Make the device the current one, whose generator is seeded and whose graphs are made."""
        return torch.cuda.device(self._cuda[0]) if self._cuda else nullcontext()

    def _read(self) -> list[Tensor]:
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state(d) for d in self._cuda)]

    @contextmanager
    def used(self) -> Iterator[None]:
        """Put the group's state in place; the caller's is back afterwards."""
        with self._current(), torch.random.fork_rng(devices=self._cuda):
            torch.set_rng_state(self._states[0])
            for device, state in zip(self._cuda, self._states[1:], strict=True):
                torch.cuda.set_rng_state(state, device)
            try:
                yield
            finally:
                self._states = self._read()


@contextmanager
def _denormals_flushed() -> Iterator[None]:
    """Denormal momentum slows SGD on CPUs; the caller's arithmetic keeps its own."""
    before = sys.float_info.min / 2 == 0.0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)
