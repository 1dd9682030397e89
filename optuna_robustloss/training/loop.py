"""The one training loop: K candidates, one task, and their accuracy along the way."""

from __future__ import annotations

import gc
import logging
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from fractions import Fraction

import torch
from torch import nn

from optuna_robustloss.seeds import derive_seed
from optuna_robustloss.tasks.models import build_model
from optuna_robustloss.tasks.prepare import LabelledImages, Task
from optuna_robustloss.training.evaluation import Evaluation, TrainingResult
from optuna_robustloss.training.gradients import is_closed_form, loss_gradients
from optuna_robustloss.training.group import Candidate, Group, Observer, Plan
from optuna_robustloss.training.population.backend import Backend, build, fastest_backend
from optuna_robustloss.training.population.memory import fitting_size, out_of_memory

_logger = logging.getLogger(__name__)

#: A candidate is judged hopeless once, after this share of its steps. In trainings of some hundred
#: steps good losses were measured to be near chance for up to an eighth of them.
STOP_AT_CHANCE_AFTER = 0.2

#: Builds a network with its initial weights from a task and a seed.
Network = Callable[[Task, int], nn.Module]
#: Told the candidates that still train at a rung, returns those to stop there.
Judge = Callable[[Sequence[int]], Collection[int]]


def hopeless_below(num_classes: int) -> float:
    """Accuracy under which a candidate is given up: 1.5 × chance, or chance + .05 if that is less.

    With fewer than ten classes 1.5 × chance would be too strict (.75 at C = 2).
    """
    chance = 1 / num_classes
    return chance + min(0.5 * chance, 0.05)


def steps_per_epoch(task: Task) -> int:
    """Optimiser steps that one pass over the training images takes."""
    return math.ceil(len(task.train) / task.spec.recipe.batch_size)


def default_device() -> torch.device:
    """CUDA where there is a device, otherwise the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def train_population(
    task: Task,
    criteria: Sequence[nn.Module],
    *,
    seed: int,
    watch: LabelledImages,
    watch_at: Iterable[int],
    also_watch: Sequence[LabelledImages] = (),
    epochs: int | None = None,
    device: torch.device | None = None,
    observe: Observer | None = None,
    stop_at_chance_after: float | None = STOP_AT_CHANCE_AFTER,
    judge: Judge | None = None,
    judge_at: Collection[int] = (),
    backend: Backend | None = None,
    network: Network | None = None,
    models: bool = False,
) -> list[TrainingResult]:
    """Train one network per loss from scratch by the task's recipe, and watch their accuracy.

    The seed decides initial weights, batch order, augmentation and dropout: all candidates have
    them in common and differ in their loss only. Their gradients never mix, so that a candidate's
    result does not depend on its company (but for rounding, which depends on the way they are
    trained). A loss with an attribute ``progress`` is told before each step which share of the
    steps is done, from 0 to 1; one with a true ``takes_index`` is called with the images' indices,
    too, and one with an ``l1`` has that times the sum of the absolute weights added.

    Candidates that end early make room: the tensors of the others shrink, and groups that did not
    fit into memory together are joined as soon as they do.

    Args:
        task: data, architecture and recipe.
        criteria: K losses, called as ``criterion(logits, labels)``, which return a scalar. Taylor
            losses are never called: their gradient is written down in closed form.
        seed: see above.
        watch: the images whose accuracy is measured: validation in a search, test in a comparison.
        watch_at: numbers of steps after which it is measured; the last step always is.
        also_watch: further images whose accuracy is measured at the same steps.
        epochs: by default the recipe's.
        device: by default CUDA where there is a device.
        observe: called with the candidate's index and every measured point; an exception ends that
            candidate, and is in its run.
        stop_at_chance_after: share of the steps after which a candidate near chance is stopped;
            None never does. One whose loss is no longer finite is always stopped.
        judge: called with the indices of the candidates that have come to a rung; those it returns
            are stopped.
        judge_at: the rungs, numbers of steps.
        backend: how the networks are trained together; by default the fastest.
        network: builds the network with its initial weights from the task and the seed, on the
            CPU; by default the spec's architecture.
        models: keep the trained networks.

    Raises:
        ValueError: there is nothing to watch, the network does not fit the images, or
            ``stop_at_chance_after`` is no share.

    """
    if not criteria:
        return []
    device = device or default_device()
    per_epoch = steps_per_epoch(task)
    total = per_epoch * (epochs or task.spec.recipe.epochs)
    check_at = None
    if stop_at_chance_after is not None and not 0 < stop_at_chance_after < 1:
        raise ValueError(
            f"stop_at_chance_after is a share between 0 and 1, got {stop_at_chance_after}"
        )
    if stop_at_chance_after is not None:  # exact: the float .07 × 100 rounds up to 8 steps
        check_at = math.ceil(Fraction(str(stop_at_chance_after)) * total)
    rungs = {step for step in judge_at if judge is not None and 0 < step < total}
    checks = rungs | ({check_at} if check_at is not None else set())
    plan = Plan(
        task=task,
        seed=seed,
        device=device,
        total=total,
        per_epoch=per_epoch,
        watch=watch,
        also=tuple(also_watch),
        watched={*watch_at, *checks, total},
        observe=observe,
        models=models,
    )
    start = place((network or initial_model)(task, seed), device)
    training = _Training(plan, criteria, start, backend)
    for stop in sorted({*checks, total}):
        training.advance(stop)
        if stop == check_at:
            training.end_hopeless(hopeless_below(task.num_classes))
        alive = training.alive()
        if judge is not None and stop in rungs and alive:
            training.drop(judge(alive))
    return training.finish()


def train(
    task: Task,
    criterion: nn.Module,
    *,
    seed: int,
    watch: LabelledImages,
    watch_at: Iterable[int],
    epochs: int | None = None,
    device: torch.device | None = None,
    observe: Callable[[Evaluation], None] | None = None,
    stop_at_chance_after: float | None = STOP_AT_CHANCE_AFTER,
) -> TrainingResult:
    """Train one network, and return it with its run; see ``train_population``.

    What ``observe`` raises is raised.
    """
    run = train_population(
        task,
        [criterion],
        seed=seed,
        watch=watch,
        watch_at=watch_at,
        epochs=epochs,
        device=device,
        observe=None if observe is None else lambda _, point: observe(point),
        stop_at_chance_after=stop_at_chance_after,
        models=True,
    )[0]
    if run.error is not None:
        raise run.error
    return run


class _Training:
    """The groups of one training, from one decision to the next."""

    def __init__(
        self, plan: Plan, criteria: Sequence[nn.Module], start: nn.Module, backend: Backend | None
    ) -> None:
        self._plan = plan
        self._criteria = criteria
        self._closed_form = is_closed_form(criteria)  # of all, so that groups can be joined
        self._candidates = [Candidate(index) for index in range(len(criteria))]
        self._start = start
        self._backend = backend or fastest_backend(
            self._start, plan.task, len(criteria), plan.device
        )
        self._size = 1
        if self._backend != "separate":
            self._size = fitting_size(self._start, plan.task, len(criteria), plan.device)
        self._groups = self._new_groups(self._candidates)

    def _new_groups(self, candidates: Sequence[Candidate]) -> list[Group]:
        """Split candidates evenly into groups that start from the beginning."""
        count = math.ceil(len(candidates) / self._size)
        groups = []
        for i in range(count):
            groups.append(self._new_group(candidates[i::count]))
            if count > 1:  # there may be no room on the device for all at once
                groups[i].park()
        return groups

    def _new_group(self, candidates: Sequence[Candidate]) -> Group:
        plan = self._plan
        for candidate in candidates:
            candidate.curve.clear()
        criteria = [self._criteria[c.index] for c in candidates]
        return Group(
            plan,
            candidates,
            build(self._backend, [self._start] * len(candidates)),
            loss_gradients(
                criteria, plan.task.num_classes, plan.device, closed_form=self._closed_form
            ),
        )

    def advance(self, until: int) -> None:
        """Bring all candidates to step ``until``; groups too large for the memory are halved."""
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
            if self._plan.device.type == "cuda":
                torch.cuda.empty_cache()
            self._size = math.ceil(len(candidates) / 2)
            _logger.warning(
                "%d candidates do not fit into memory together: they start again %d at a time",
                len(candidates),
                self._size,
            )
            waiting = self._new_groups(candidates) + waiting
        self._groups = [group for group in self._groups if group.candidates]

    def alive(self) -> list[int]:
        """Return the indices of the candidates that still train."""
        return sorted(c.index for group in self._groups for c in group.candidates)

    def end_hopeless(self, threshold: float) -> None:
        """Stop the candidates whose last measured accuracy is below ``threshold``."""
        alive = [c for group in self._groups for c in group.candidates]
        ended = [c for c in alive if c.curve[-1].accuracy < threshold]
        for candidate in ended:
            candidate.hopeless = True
        self._end(ended)

    def drop(self, indices: Collection[int]) -> None:
        """Stop candidates at a rung."""
        ended = [self._candidates[index] for index in indices]
        for candidate in ended:
            candidate.dropped = True
        self._end(ended)

    def _end(self, ended: Sequence[Candidate]) -> None:
        for group in self._groups:
            group.leave([c for c in group.candidates if c in ended])
        groups, self._groups = [group for group in self._groups if group.candidates], []
        for group in groups:  # join those that fit together by now
            for other in self._groups:
                if len(other.candidates) + len(group.candidates) <= self._size:
                    other.absorb(group)
                    break
            else:
                self._groups.append(group)

    def finish(self) -> list[TrainingResult]:
        """End the candidates that are left, and return the runs of all, in their order."""
        for group in self._groups:
            group.leave(list(group.candidates))
        return [
            TrainingResult(tuple(c.curve), c.diverged, c.hopeless, c.dropped, c.error, c.model)
            for c in self._candidates
        ]


def initial_model(task: Task, seed: int, part: str = "init") -> nn.Module:
    """Build the task's network on the CPU, so that every host starts from the same weights.

    ``part`` tells the networks of one training apart, where there are several.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, part))
        return build_model(
            task.spec.architecture,
            num_classes=task.num_classes,
            image_shape=task.image_shape,
            pretrained=task.spec.pretrained,
        )


def place(model: nn.Module, device: torch.device) -> nn.Module:
    """Move a network, convolutions to the layout that is fastest."""
    model = model.to(device)
    if any(isinstance(module, nn.Conv2d) for module in model.modules()):
        model = model.to(memory_format=torch.channels_last)
    return model
