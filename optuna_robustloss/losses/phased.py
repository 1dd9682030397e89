"""Two losses in one training: one that fits fast, then one that memorises less."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .adaptive import AdaptiveRule, AdaptiveState, read_samples
from .closed_form import ClosedForm, check_change, closed_form, late_share, late_shares

#: Default share of the steps that the change takes.
DEFAULT_WIDTH = 0.04
#: Defaults of an adaptive switch: the width, and the guards with and without ``after``.
ADAPTIVE_WIDTH, GUARD, RELATIVE_GUARD = 0.5, 0.02, 0.06


class PhasedLoss(nn.Module):
    """A loss that changes into another in the course of a training.

    Up to ``switch`` it is ``early``, from ``switch + width`` on ``late``, between them a blend
    whose weight grows linearly with the steps. In evaluation mode it is ``late``.

    The moment is the share of the steps done before a step. By default the loss counts its calls
    in training mode with gradients enabled in the int64 buffer ``steps``, from which a
    ``state_dict`` resumes. A loop that calls it more or less often than once a step sets the
    attribute ``progress`` before each call, to a share from 0 to 1, and nothing is counted; so does
    this package's own loop. None, the default, goes back to counting. With gradient accumulation,
    either ``total_steps`` is the number of backward passes, or the loop sets ``progress``.

    With ``switch="adaptive"`` the batches themselves tell the moment, by their agreement with the
    given labels and their confidence: see ``AdaptiveRule``. The state is in buffers, so that a
    checkpoint resumes; in a process group the batches of all ranks are read as one, and all ranks
    have to call the loss. ``after`` counts the cumulative learning rate: give the ``lr`` of a
    constant one, or set the attribute ``cumulative_lr`` before each step (Σ lr of the steps before,
    as this package's own loop does). Without ``after`` no learning rate is needed.

    Works under ``torch.compile(fullgraph=True)``; the graph computes both parts at every step,
    where eager mode skips a part that weighs 0.

    The attributes of both parts that a training loop reads are passed on, as by ``ScaledLoss``:
    ``takes_index``, and ``l1`` blended with the weights of the last step.

    Args:
        early: the loss at first; any loss called as ``criterion(logits, target)``.
        late: the loss in the end, of the same ``reduction``.
        switch: share of ``total_steps`` after which the change begins, or ``"adaptive"``.
        width: share of ``total_steps`` that the change takes, .04 by default; 0 is a change at
            once. Adaptive: a multiple of ``after``, or of the steps before the change; .5.
        total_steps: optimiser steps of the training; may be None where ``progress`` is set.
        after: adaptive: cumulative learning rate before which the change does not start; None for
            the rule without a learning rate.
        guard: adaptive: rise of agreement/confidence above its minimum, .02 by default; without
            ``after`` as a multiple of the minimum, .06.
        averaging: adaptive: what the moving averages keep at each step.
        lr: adaptive, with ``after``: the learning rate, if it is constant.

    Raises:
        ValueError: an argument is out of its domain, the change would not be over by the end, the
            reductions differ, or a part has phases itself.

    >>> from .published import MAELoss
    >>> ce = nn.CrossEntropyLoss()
    >>> criterion = PhasedLoss(ce, MAELoss(), switch=0.08, width=0.04, total_steps=448)
    >>> _ = criterion(torch.zeros(4, 10), torch.tensor([0, 1, 2, 3]))
    >>> int(criterion.steps)
    1
    >>> adaptive = PhasedLoss(ce, MAELoss(), switch="adaptive", after=2.0, lr=0.01)

    """

    steps: Tensor

    def __init__(
        self,
        early: nn.Module,
        late: nn.Module,
        *,
        switch: float | Literal["adaptive"],
        width: float | None = None,
        total_steps: int | None = None,
        after: float | None = None,
        guard: float | None = None,
        averaging: float = 0.98,
        lr: float | None = None,
    ) -> None:
        super().__init__()
        self.switch: float | Literal["adaptive"]
        if switch == "adaptive":
            self.switch = switch
            self.width = ADAPTIVE_WIDTH if width is None else float(width)
            if guard is None:
                guard = RELATIVE_GUARD if after is None else GUARD
            if total_steps is not None:
                raise ValueError("an adaptive switch does not use total_steps: leave it out")
            if lr is not None and not (after is not None and math.isfinite(lr) and lr > 0):
                raise ValueError(f"lr is a positive number beside after, got {lr}, after {after}")
        else:
            self.switch = float(switch)
            self.width = DEFAULT_WIDTH if width is None else float(width)
            check_change(self.switch, self.width)
            if total_steps is not None and total_steps < 1:
                raise ValueError(f"total_steps must be at least 1 or None, got {total_steps}")
            if (after, guard, lr) != (None, None, None):
                raise ValueError('after, guard and lr are for switch="adaptive"')
        for part in (early, late):
            if any(isinstance(module, PhasedLoss) for module in part.modules()):
                raise ValueError("the parts of a PhasedLoss cannot have phases themselves")
        reductions = _reduction(early), _reduction(late)
        if None not in reductions and reductions[0] != reductions[1]:
            raise ValueError(f"both parts need the same reduction, got {reductions}")
        self.early, self.late = early, late
        self.total_steps = total_steps
        self.after, self.guard, self.averaging, self.lr = after, guard, averaging, lr
        self.provenance: dict[str, Any] = {}  # set by ``load_loss``
        self.reduction = reductions[1]
        self._progress: Tensor | None = None
        self._cumulative_lr: Tensor | None = None
        self._weight: float | Tensor = 0.0
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.rule = None if guard is None else AdaptiveRule(after, guard, averaging, self.width)
        self.state = None if self.rule is None else AdaptiveState([self.rule])

    @classmethod
    def at_cumulative_lr(
        cls,
        early: nn.Module,
        late: nn.Module,
        *,
        switch: float,
        width: float,
        lr: float,
        total_steps: int,
        **options: Any,
    ) -> PhasedLoss:
        """Return a loss that changes at a cumulative learning rate.

        The cumulative learning rate, steps × ``lr``, decides how far a network has been fitted, so
        it carries over to a training of another length where a share of the steps does not.

        Args:
            early: see ``PhasedLoss``.
            late: see ``PhasedLoss``.
            switch: cumulative learning rate after which the change begins.
            width: cumulative learning rate that the change takes.
            lr: learning rate until then.
            total_steps: optimiser steps of the training.
            options: further arguments of ``PhasedLoss``.

        Raises:
            ValueError: as ``PhasedLoss``, or the training is too short.

        """
        cumulative_lr = lr * total_steps
        if not (math.isfinite(cumulative_lr) and cumulative_lr > 0):
            raise ValueError(f"lr and total_steps must be positive, got {lr} and {total_steps}")
        if switch + width > cumulative_lr * (1 + 1e-9):
            raise ValueError(
                f"the change ends at a cumulative learning rate of {switch + width:.4g}, the "
                f"training at {cumulative_lr:.4g}: choose an earlier switch, or train longer"
            )
        return cls(
            early,
            late,
            switch=switch / cumulative_lr,
            width=width / cumulative_lr,
            total_steps=total_steps,
            **options,
        )

    @property
    def progress(self) -> float | None:
        """Share of the steps that are done, as it was set; None: the loss counts by itself."""
        return None if self._progress is None else float(self._progress)

    @progress.setter
    def progress(self, value: float | None) -> None:
        if self.state is not None:
            raise ValueError("an adaptive switch has no progress: set cumulative_lr")
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"progress is a share of the steps from 0 to 1, or None, got {value}")
        # A tensor: a compiled graph would be specialised to a number.
        self._progress = None if value is None else torch.tensor(value, dtype=torch.float64)

    @property
    def cumulative_lr(self) -> float | None:
        """Σ lr of the steps before, as it was set; None: it is steps × ``lr``."""
        return None if self._cumulative_lr is None else float(self._cumulative_lr)

    @cumulative_lr.setter
    def cumulative_lr(self, value: float | None) -> None:
        if value is not None and not 0 <= value < math.inf:
            raise ValueError(f"cumulative_lr must be a number ≥ 0, or None, got {value}")
        self._cumulative_lr = None if value is None else torch.tensor(value, dtype=torch.float64)

    @property
    def takes_index(self) -> bool:
        """Whether a part is called with the samples' indices, too."""
        return any(getattr(part, "takes_index", False) for part in (self.early, self.late))

    @property
    def l1(self) -> float:
        """Weight of the L1 norm of the network's parameters, at the last step."""
        early, late = (float(getattr(part, "l1", 0.0)) for part in (self.early, self.late))
        weight = float(self._weight)
        return (1 - weight) * early + weight * late

    def reset(self) -> None:
        """Count from 0, as before a training; an adaptive state resets itself."""
        self.steps.zero_()

    def _late_weight(self, logits: Tensor, target: Tensor) -> float | Tensor:
        """Return the weight of the late loss at this call, and count it; a Tensor in a graph."""
        in_graph = torch.compiler.is_compiling()
        if self.state is not None:
            if torch.is_grad_enabled():
                self._read(self.state, logits, target)
            weight = self.state.weight[0].clone()
            return weight if in_graph else float(weight)
        assert self.switch != "adaptive"
        done: float | Tensor
        if self._progress is not None:
            done = self._progress if in_graph else float(self._progress)
        elif self.total_steps is None:
            raise RuntimeError(
                "PhasedLoss has neither total_steps nor progress: build it with total_steps, or "
                "set its progress (0 to 1) before each step"
            )
        else:
            done = (self.steps.double() if in_graph else int(self.steps)) / self.total_steps
            if torch.is_grad_enabled():  # not in evaluation
                self.steps += 1
        if isinstance(done, Tensor):
            return late_shares(done, self.switch, self.width)
        return late_share(done, self.switch, self.width)

    def _read(self, state: AdaptiveState, logits: Tensor, target: Tensor) -> None:
        """Take in the batch of a step."""
        done = self._cumulative_lr
        if done is None and self.after is not None and self.lr is None:
            raise RuntimeError(
                f"an adaptive switch after a cumulative lr of {self.after:g} needs the learning "
                "rate: build or load the loss with lr=, set cumulative_lr before each step, or use "
                "the rule without, after=None"
            )
        if done is None:
            done = self.steps * (self.lr or 0.0)
        self.steps += 1
        state.advance(read_samples(logits, target, self.late), self.steps, done)

    def forward(self, logits: Tensor, target: Tensor, *rest: Tensor) -> Tensor:
        """Return the loss of this moment; only one part is computed where the other weighs 0."""
        weight: float | Tensor = 1.0
        if self.training:
            weight = self._weight = self._late_weight(logits, target)
        if isinstance(weight, Tensor):
            early, late = (_call(part, logits, target, rest) for part in (self.early, self.late))
            blend = torch.lerp(early, late, weight.to(late))
            # A part that weighs 0 may be infinite.
            return torch.where(weight == 0, early, torch.where(weight == 1, late, blend))
        if weight == 0:
            return _call(self.early, logits, target, rest)
        late = _call(self.late, logits, target, rest)
        if weight == 1:
            return late
        return (1 - weight) * _call(self.early, logits, target, rest) + weight * late

    def closed_form(self) -> ClosedForm | None:
        """Return the gradient in training mode in closed form, if both parts have one."""
        early, late = closed_form(self.early), closed_form(self.late)
        if type(self) is not PhasedLoss or not self.training or early is None or late is None:
            return None
        if self.switch == "adaptive":
            return ClosedForm(early.early, late.late, rule=self.rule)
        return ClosedForm(early.early, late.late, self.switch, self.width)

    def extra_repr(self) -> str:
        """Print when the loss changes."""
        if self.switch != "adaptive":
            return f"switch={self.switch:g}, width={self.width:g}, total_steps={self.total_steps}"
        names = ("switch", "after", "guard", "averaging", "width", "lr")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)


def _call(loss: nn.Module, logits: Tensor, target: Tensor, rest: tuple[Tensor, ...]) -> Tensor:
    """Call a loss with the samples' indices, if it takes them."""
    value: Tensor = loss(logits, target, *(rest if getattr(loss, "takes_index", False) else ()))
    return value


def _reduction(loss: nn.Module) -> str | None:
    """Return the reduction of a loss, or of the loss that it scales; None if it does not say."""
    inner = getattr(loss, "criterion", None)
    if isinstance(inner, nn.Module):
        return _reduction(inner)
    found = getattr(loss, "reduction", None)
    return found if isinstance(found, str) else None
