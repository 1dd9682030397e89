"""The training loop of candidates in one population; ``Group.advance`` holds a step, in order."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from optuna_robustloss.seeds import derive_seed
from optuna_robustloss.tasks.prepare import LabelledImages, Task
from optuna_robustloss.tasks.recipes import build_optimizer
from optuna_robustloss.training.evaluation import Evaluation, accuracies, autocast
from optuna_robustloss.training.gradients import ClosedFormGradients, LossGradients, has_l1
from optuna_robustloss.training.isolation import RandomState, flushed_denormals
from optuna_robustloss.training.population.cuda_graphs import Pass, Recorder
from optuna_robustloss.training.population.population import (
    Population,
    add_l1,
    clip_gradients,
    keep_state,
    optimizer_state_to,
)


@dataclass(frozen=True)
class Setup:
    """What all candidates of one training share."""

    task: Task
    seed: int
    device: torch.device
    total_steps: int
    steps_per_epoch: int
    evaluate_on: Sequence[LabelledImages]
    keep_models: bool


@dataclass(eq=False)
class Candidate:
    """One loss and what is known of its network so far."""

    index: int
    criterion: nn.Module
    curve: list[Evaluation] = field(default_factory=list)
    diverged: bool = False
    stopped: bool = False
    model: nn.Module | None = None


class Group:
    """Candidates that are trained as one population: one optimiser, one stream of batches.

    All groups of one training see the same batches and draw the same random numbers. Losses with
    an L1 norm of the weights have it in place of weight decay, all of a group or none.
    """

    def __init__(
        self,
        setup: Setup,
        candidates: Sequence[Candidate],
        population: Population,
        gradients: LossGradients,
    ) -> None:
        self.candidates = list(candidates)
        self.population, self._gradients = population, gradients
        self.step = 0
        self._cumulative_lr = 0.0
        self._setup, self._recipe = setup, setup.task.spec.recipe
        if any(has_l1(candidate.criterion) for candidate in candidates):
            self._recipe = self._recipe.changed({"weight_decay": 0.0})
        self._optimizer = build_optimizer(self._recipe, population.parameters())
        self._labels = setup.task.train.labels.to(setup.device)
        self._batches = self._stream_batches()
        self._random_state = RandomState(derive_seed(setup.seed, "dropout"), setup.device)
        self._pass: Pass = self._forward_backward
        if setup.device.type == "cuda" and isinstance(gradients, ClosedFormGradients):
            self._pass = Recorder(self._forward_backward, population, gradients.state)

    def advance(self, until: int) -> None:
        """Train up to step ``until`` and evaluate there; candidates that diverge leave."""
        recipe = self._recipe
        self._move_to(self._setup.device)
        self.population.train()
        with flushed_denormals(), self._random_state.active():
            while self.step < until and self.candidates:
                progress = self.step / self._setup.total_steps
                if not recipe.constant_lr:
                    for parameters in self._optimizer.param_groups:
                        parameters["lr"] = recipe.lr_at(progress)
                        if recipe.decayed_beta1 is not None and progress >= recipe.decay_start:
                            parameters["betas"] = (recipe.decayed_beta1, parameters["betas"][1])
                self._gradients.set_progress(progress, self._cumulative_lr)
                self._cumulative_lr += recipe.lr_at(progress)
                index, images = next(self._batches)
                self._gradients.set_index(index)
                is_single = len(images) == 1  # batch normalisation cannot train on one image
                if is_single:
                    self.population.eval()
                finite = self._pass(images, self._labels[index])
                if is_single:
                    self.population.train()
                if any(self._gradients.l1):
                    add_l1(self.population, self._gradients.l1)
                if recipe.clip_grad_norm is not None:
                    clip_gradients(self.population, recipe.clip_grad_norm)
                self._optimizer.step()
                self.step += 1

                is_epoch_end = self.step % self._setup.steps_per_epoch == 0
                if self.step == until:
                    evaluated = self._evaluate(self.candidates)
                    finite = finite & evaluated if is_epoch_end else evaluated
                if self.step == until or is_epoch_end:
                    self._end_diverged(finite, evaluate=self.step < until)

    def leave(self, leaving: Collection[Candidate]) -> None:
        """Continue without the candidates ``leaving``; the tensors shrink."""
        if self._setup.keep_models:
            for position, candidate in enumerate(self.candidates):
                if candidate in leaving:
                    candidate.model = self.population.network(position)
        stay = [i for i, c in enumerate(self.candidates) if c not in leaving]
        if len(stay) == len(self.candidates):
            return
        self.candidates = [self.candidates[i] for i in stay]
        if stay:
            self._forget_graph()
            keep_state(self._optimizer, stay)
            self.population.keep(stay)
            self._gradients.keep(stay)

    def park(self) -> None:
        """Free the device for another group."""
        self._move_to(torch.device("cpu"))

    def _forward_backward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Fill the gradients, and return bool ``(K,)``: the candidate's loss is finite."""
        self._optimizer.zero_grad(set_to_none=True)
        with autocast(self._recipe.precision, self._setup.device):
            logits = self.population(images)
        gradient, finite = self._gradients(logits.detach(), labels)
        torch.autograd.backward(logits, gradient)
        return finite

    def _evaluate(self, candidates: Collection[Candidate]) -> Tensor:
        """Add a point to the curves of ``candidates``; return bool ``(K,)``: logits are finite."""
        setup, precision = self._setup, self._recipe.precision
        (values, finite), *others = (
            accuracies(self.population, part, setup.device, precision) for part in setup.evaluate_on
        )
        epoch = self.step / setup.steps_per_epoch
        for position, candidate in enumerate(self.candidates):
            if candidate in candidates:
                also = tuple(other[position] for other, _ in others)
                candidate.curve.append(Evaluation(self.step, epoch, values[position], also))
        return finite

    def _end_diverged(self, finite: Tensor, *, evaluate: bool) -> None:
        """Take out the candidates that are not finite, perhaps after a last evaluation."""
        pairs = zip(self.candidates, finite.tolist(), strict=True)
        diverged = [candidate for candidate, is_finite in pairs if not is_finite]
        if diverged and evaluate:
            self._evaluate(diverged)
        for candidate in diverged:
            candidate.diverged = True
        self.leave(diverged)

    def _stream_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the image indices and images of every batch, epoch after epoch."""
        setup, train = self._setup, self._setup.task.train
        order = torch.Generator().manual_seed(derive_seed(setup.seed, "order"))
        augment = torch.Generator().manual_seed(derive_seed(setup.seed, "augment"))
        while True:
            yield from train.images.batches(
                train.index[torch.randperm(len(train), generator=order)],
                self._recipe.batch_size,
                device=setup.device,
                augment=augment if self._recipe.augment else None,
            )

    def _move_to(self, device: torch.device) -> None:
        if next(self.population.parameters()).device.type != device.type:
            self._forget_graph()
            self.population.to(device)
            optimizer_state_to(self._optimizer, device)

    def _forget_graph(self) -> None:
        """Drop a recorded CUDA graph: the tensors are about to change."""
        if isinstance(self._pass, Recorder):
            self._pass.forget()
