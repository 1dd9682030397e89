"""Training with K losses together: an iterator of evaluations that can stop candidates."""

from __future__ import annotations

import copy
import gc
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import nn

from optuna_robustloss.tasks.prepare import LabelledImages, Task
from optuna_robustloss.training.evaluation import Evaluation, TrainingResult
from optuna_robustloss.training.gradients import has_l1, is_closed_form, loss_gradients
from optuna_robustloss.training.loop import Candidate, Group, Setup
from optuna_robustloss.training.networks import default_device, initial_model, move_to_device
from optuna_robustloss.training.population.backend import Backend, build, fastest_backend
from optuna_robustloss.training.population.memory import fitting_size, out_of_memory

_logger = logging.getLogger(__name__)

#: Builds a network with its initial weights on the CPU, from a task and a seed.
NetworkFactory = Callable[[Task, int], nn.Module]


def steps_per_epoch(task: Task) -> int:
    """Return the optimiser steps of one pass over the training images."""
    return math.ceil(len(task.train) / task.spec.recipe.batch_size)


def spread_over_epochs(task: Task, epochs: int, count: int) -> list[int]:
    """Return ``count`` steps spread evenly over the ends of ``epochs`` epochs, or the end of each.

    The last is the end of the training.
    """
    count = min(epochs, count)
    return [round(epochs * (i + 1) / count) * steps_per_epoch(task) for i in range(count)]


def train(
    task: Task,
    criteria: Sequence[nn.Module],
    *,
    seed: int,
    evaluate_on: LabelledImages,
    evaluate_at: Iterable[int] = (),
    evaluate_also_on: Sequence[LabelledImages] = (),
    epochs: int | None = None,
    device: torch.device | None = None,
    backend: Backend | None = None,
    network: NetworkFactory = initial_model,
    keep_models: bool = False,
) -> Training:
    """Start to train one network per loss from scratch, by the task's recipe.

    Nothing is trained before the result is iterated over, or finished: see ``Training``. The seed
    determines initial weights, batch order, augmentation and dropout, which all candidates share.
    Their gradients never mix. A candidate's result does not depend on the other candidates, except
    for rounding, which depends on the backend.

    A loss with an attribute ``progress`` has it set before each step to the share of the steps
    done, from 0 to 1. One with a true ``takes_index`` is also called with the images' indices. One
    with an ``l1`` has ``l1`` × the sum of the absolute weights added in place of weight decay. One
    with a method ``reset`` has it called at the start, and again where its population is restarted
    for lack of memory.

    Args:
        task: data, architecture and recipe.
        criteria: K losses ``criterion(logits, labels) → scalar``. Losses with a closed form are
            never called; one that is given twice is copied, so that each has its own state.
        seed: see above.
        evaluate_on: the images whose accuracy is measured.
        evaluate_at: numbers of steps after which it is measured; after the last it always is.
        evaluate_also_on: further images whose accuracy is measured at the same steps.
        epochs: by default the recipe's.
        device: by default CUDA where there is a device.
        backend: how the networks are trained together; by default the fastest.
        network: builds the network; by default the spec's architecture.
        keep_models: keep the trained networks in the results.

    Raises:
        ValueError: the network does not fit the images, or a loss not the number of classes.

    """
    device = device or default_device()
    per_epoch = steps_per_epoch(task)
    total = per_epoch * (epochs or task.spec.recipe.epochs)
    setup = Setup(
        task=task,
        seed=seed,
        device=device,
        total_steps=total,
        steps_per_epoch=per_epoch,
        evaluate_on=(evaluate_on, *evaluate_also_on),
        keep_models=keep_models,
    )
    stops = sorted({step for step in evaluate_at if 0 < step < total} | {total})
    return Training(setup, criteria, stops, move_to_device(network(task, seed), device), backend)


class Training:
    """An iterator of evaluations, between which the caller may stop candidates.

    Each item maps the index of every candidate trained since the last item to its new
    ``Evaluation``. All are of the same step, ``step``, except for candidates that diverged before:
    those are evaluated where the divergence was found, and end there.

        training = train(task, losses, seed=0, evaluate_on=task.validation, evaluate_at=[100, 200])
        for evaluations in training:
            training.stop(k for k, e in evaluations.items() if e.accuracy < 0.15)
        results = training.finish()

    Candidates that do not fit into memory together are trained in groups, one after another from
    one evaluation to the next.
    """

    def __init__(
        self,
        setup: Setup,
        criteria: Sequence[nn.Module],
        evaluate_at: Sequence[int],
        network: nn.Module,
        backend: Backend | None,
    ) -> None:
        self.step = 0
        """Optimiser steps up to the last item."""
        count = len(criteria)
        self._setup, self._network = setup, network
        self._closed_form = is_closed_form(criteria)  # of all, so that no group differs
        self._backend = backend or fastest_backend(network, setup.task, count, setup.device)
        size = 1
        if self._backend != "separate":
            size = fitting_size(network, setup.task, count, setup.device)
        self._candidates = [
            Candidate(i, copy.deepcopy(c) if any(c is other for other in criteria[:i]) else c)
            for i, c in enumerate(criteria)
        ]
        self._groups = self._new_groups(self._candidates, size)
        self._evaluations = self._iterate(evaluate_at)

    def __iter__(self) -> Iterator[Mapping[int, Evaluation]]:
        """Train from one evaluation to the next; a second iteration continues the first."""
        return self._evaluations

    @property
    def alive(self) -> list[int]:
        """Indices of the candidates that are still trained."""
        return sorted(c.index for group in self._groups for c in group.candidates)

    def network(self, index: int) -> nn.Module:
        """Return the network of a candidate that is still trained, as it is now.

        Training changes it further where networks are trained one by one.

        Raises:
            StopIteration: the candidate has ended.

        """
        places = ((group, i) for group in self._groups for i in range(len(group.candidates)))
        group, position = next((g, i) for g, i in places if g.candidates[i].index == index)
        return group.population.network(position)

    def stop(self, indices: Iterable[int]) -> None:
        """Stop candidates where they are; those that have ended already stay as they are."""
        chosen = set(indices)
        for group in self._groups:
            leaving = [c for c in group.candidates if c.index in chosen]
            for candidate in leaving:
                candidate.stopped = True
            group.leave(leaving)
        self._groups = [group for group in self._groups if group.candidates]

    def finish(self) -> list[TrainingResult]:
        """Train the rest of the steps, and return the results in the order of the losses."""
        for _ in self:
            pass
        return [
            TrainingResult(tuple(c.curve), c.diverged, c.stopped, c.model) for c in self._candidates
        ]

    def _iterate(self, evaluate_at: Sequence[int]) -> Iterator[Mapping[int, Evaluation]]:
        for until in evaluate_at:
            training = set(self.alive)
            if not training:
                return
            self._advance(until)
            self.step = until
            yield {c.index: c.curve[-1] for c in self._candidates if c.index in training}
        for group in self._groups:
            group.leave(list(group.candidates))
        self._groups = []

    def _advance(self, until: int) -> None:
        """Bring all groups to step ``until``; one that is too large for the memory is split."""
        waiting, self._groups = self._groups, []
        while waiting:
            group = waiting.pop(0)
            try:
                group.advance(until)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error) or len(group.candidates) == 1:
                    raise
            else:
                if waiting or self._groups:
                    group.park()
                self._groups.append(group)
                continue
            candidates = group.candidates
            del group  # outside the handler, whose traceback would keep the tensors alive
            gc.collect()  # a group refers to itself
            torch.cuda.empty_cache()
            size = math.ceil(len(candidates) / 2)
            _logger.warning(
                "%d candidates do not fit into memory together: restarting them %d at a time",
                len(candidates),
                size,
            )
            waiting = self._new_groups(candidates, size) + waiting
        self._groups = [group for group in self._groups if group.candidates]

    def _new_groups(self, candidates: Sequence[Candidate], size: int) -> list[Group]:
        """Split candidates evenly into groups of at most ``size`` that start at step 0.

        Where the recipe has weight decay, losses that bring an L1 norm in its place are groups of
        their own.
        """
        setup, alike = self._setup, [list(candidates)]
        if setup.task.spec.recipe.weight_decay:
            with_l1 = [has_l1(candidate.criterion) for candidate in candidates]
            alike = [
                [c for c, own in zip(candidates, with_l1, strict=True) if own is kind]
                for kind in (False, True)
            ]
        parts = []
        for some in alike:
            count = math.ceil(len(some) / size)
            parts += [some[i::count] for i in range(count)]
        groups = []
        for members in parts:
            group = Group(
                setup,
                members,
                build(self._backend, [self._network] * len(members)),
                loss_gradients(
                    [candidate.criterion for candidate in members],
                    setup.task.num_classes,
                    setup.device,
                    without_autograd=self._closed_form,
                ),
            )
            if len(parts) > 1:  # all groups at once may not fit on the device
                group.park()
            groups.append(group)
        return groups
