"""Early-learning regularisation, which remembers what was predicted for each training sample."""

from __future__ import annotations

import torch
from torch import Tensor

from ..base import ClassificationLoss, Reduction, check_factors, cross_entropy
from ..ranks import gather_rows

#: Probabilities are kept this far from 0 and 1, as in the authors' code.
_MARGIN = 1e-4


class ELRLoss(ClassificationLoss):
    """Cross-entropy + λ log(1 − ⟨t, ŷ⟩): Liu et al. (NeurIPS 2020).

    t is the sample's moving average t ← β t + (1 − β) ŷ of the predictions, a constant for the
    gradient, updated before it is used, and starts at zero. ŷ is kept in [10⁻⁴, 1 − 10⁻⁴], and in
    t of sum 1, as in the authors' code.

    Defaults are those of the authors' code for CIFAR-10 with symmetric noise; CIFAR-100: β = .9,
    λ = 7. In evaluation the averages are read only, and without indices the loss is cross-entropy.

    In a process group (``DistributedDataParallel``) every rank keeps the averages of all samples: a
    step updates them with the batches of all ranks, since a shuffled sampler hands a sample to
    another rank in the next epoch. So in training all ranks have to call the loss equally often.
    ``reset`` forgets the averages before another training.

    Args:
        num_samples: of the training set.
        num_classes: C.
        beta: what is kept of the average at each update, in [0, 1).
        lam: λ ≥ 0; 0 is cross-entropy.
        reduction: as in ``nn.CrossEntropyLoss``, like ``ignore_index`` and ``weight``.
        ignore_index: class index whose samples do not count; their averages, which no label
            enters, go on.
        weight: ``(C,)`` weight of each class, for both terms.

    Raises:
        ValueError: any of the above is out of its domain.

    >>> criterion = ELRLoss(num_samples=50_000, num_classes=10)
    >>> logits, labels, index = torch.zeros(2, 10), torch.tensor([3, 8]), torch.tensor([17, 4])
    >>> loss = criterion(logits, labels, index)
    >>> round(criterion.average[17, 0].item(), 4)  # (1 − β)/C
    0.03

    """

    #: ``forward`` takes the samples' indices, too.
    takes_index = True

    average: Tensor

    def __init__(
        self,
        num_samples: int,
        num_classes: int,
        beta: float = 0.7,
        lam: float = 3.0,
        *,
        reduction: Reduction = "mean",
        ignore_index: int = -100,
        weight: Tensor | None = None,
    ) -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index, weight=weight)
        if num_samples < 1 or num_classes < 2:
            raise ValueError(
                f"need num_samples ≥ 1 and num_classes ≥ 2, got {num_samples}, {num_classes}"
            )
        if not 0 <= beta < 1:
            raise ValueError(f"beta must be in [0, 1), got {beta}")
        check_factors(lam=lam)
        self.beta, self.lam = beta, lam
        self.register_buffer("average", torch.zeros(num_samples, num_classes))

    def reset(self) -> None:
        """Set the averages to zero, as before a training."""
        self.average.zero_()

    def per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy, the term without memory."""
        return cross_entropy(logits, target)

    def forward(self, logits: Tensor, target: Tensor, index: Tensor | None = None) -> Tensor:
        """Return the loss: a scalar, or per sample with ``reduction="none"``.

        Args:
            logits: ``(N, C)``.
            target: class indices ``(N,)`` or probabilities ``(N, C)``.
            index: integers ``(N,)``, the samples' places in the training set; none twice in a step.

        Raises:
            TypeError: no ``index`` in training.
            ValueError: shapes that do not fit.

        """
        rows, target, ignored = self.prepare(logits, target)
        losses = self.per_sample(rows, target)
        if index is not None:
            losses = losses + self.lam * self._memory(rows, index)
        elif self.training:
            raise TypeError(
                "ELRLoss needs index (N,), the samples' places in the training set, in training; "
                "call eval() for plain cross-entropy"
            )
        return self.reduce(losses, target, ignored)

    def _memory(self, logits: Tensor, index: Tensor) -> Tensor:
        """log(1 − ⟨t, ŷ⟩) ``(N,)``, after the update of t in training."""
        if logits.ndim != 2 or logits.shape[1] != self.average.shape[1]:
            raise ValueError(
                f"ELRLoss needs logits (N, {self.average.shape[1]}), got {tuple(logits.shape)}"
            )
        if index.shape != logits.shape[:1] or index.dtype != torch.int64:
            raise ValueError(
                f"index must be int64 of shape ({logits.shape[0]},), "
                f"got {index.dtype} of shape {tuple(index.shape)}"
            )
        probability = logits.softmax(-1).clamp(_MARGIN, 1 - _MARGIN)
        average = self.average[index].to(probability.dtype)
        if self.training:
            now = probability.detach()
            average = self.beta * average + (1 - self.beta) * now / now.sum(-1, keepdim=True)
            places, rows = gather_rows(index.to(average.device), average)
            self.average[places] = rows.to(self.average.dtype)
        return torch.log1p(-(average * probability).sum(-1))

    def extra_repr(self) -> str:
        """Print the sizes and the two constants."""
        samples, classes = self.average.shape
        return f"{samples}, {classes}, beta={self.beta}, lam={self.lam}"
