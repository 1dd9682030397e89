"""Layers that hold K candidates each, for networks that are fused layer by layer.

A fused layer *is* the plain layer (its class is swapped for a subclass here), so that code that
reads ``conv.stride`` or ``fc.in_features`` still works; its parameters and buffers have the
candidate as first dimension. Activations lie in one of two layouts, candidate-major in both:

- ``"channels"``: ``(N, K·C, H, W)``, features last: ``(..., K·F)``;
- ``"batch"``: ``(K·N, C, H, W)``, ``(K·N, ..., F)``.

Up to the first layer with weights all candidates have the same activations: these are *shared*,
``(N, C, H, W)`` in both layouts, and that layer detects it by the size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, Conv2dSame, DropPath
from timm.layers import GroupNorm as TimmGroupNorm
from timm.layers import LayerNorm as TimmLayerNorm
from timm.layers import LayerNorm2d as TimmLayerNorm2d
from timm.layers import Linear as TimmLinear
from timm.layers.padding import pad_same
from torch import Tensor, nn
from torchvision.models.convnext import LayerNorm2d
from torchvision.ops import StochasticDepth

from optuna_robustloss.training.population.batched_linear import batched_linear

Layout = Literal["channels", "batch"]


@dataclass
class FusionContext:
    """State that the layers of a fused network share, set by every forward pass."""

    layout: Layout
    size: int = 1
    """K."""
    rows: int = 0
    """N."""
    mixed: bool = False
    """A layer with weights has run: activations belong to candidates."""

    def to_channels(self, x: Tensor, width: int, *, repeat: bool = True) -> Tensor:
        """Return ``x`` as ``(N, K·width, ...)``; shared ones are repeated, or stay shared."""
        self.mixed = True
        if self.layout == "batch" and not self._is_shared_batch(x):
            if _is_channels_last(x):  # and stays so
                x = torch.unflatten(x.permute(0, 2, 3, 1), 0, (self.size, -1))
                return x.permute(1, 2, 3, 0, 4).flatten(3, 4).permute(0, 3, 1, 2)
            return torch.unflatten(x, 0, (self.size, -1)).transpose(0, 1).flatten(1, 2)
        if repeat and x.shape[1] == width:
            return x.repeat(1, self.size, *(1,) * (x.ndim - 2))
        return x

    def from_channels(self, y: Tensor) -> Tensor:
        """Return ``y (N, K·C, ...)`` in the network's layout."""
        if self.layout == "channels":
            return y
        if _is_channels_last(y):
            y = torch.unflatten(y.permute(0, 2, 3, 1), -1, (self.size, -1))
            return y.permute(3, 0, 1, 2, 4).flatten(0, 1).permute(0, 3, 1, 2)
        return torch.unflatten(y, 1, (self.size, -1)).transpose(0, 1).flatten(0, 1)

    def to_stacked(self, x: Tensor, width: int) -> Tensor:
        """Return features-last ``x`` as ``(K, ..., width)``, or ``(1, ..., width)`` if shared."""
        self.mixed = True
        if self.layout == "batch":
            return (
                x.unsqueeze(0)
                if self._is_shared_batch(x)
                else torch.unflatten(x, 0, (self.size, -1))
            )
        return torch.unflatten(x, -1, (-1, width)).movedim(-2, 0)

    def from_stacked(self, y: Tensor) -> Tensor:
        """Return ``y (K, ..., F)`` in the network's layout, features last."""
        return y.flatten(0, 1) if self.layout == "batch" else y.movedim(0, -2).flatten(-2)

    def _is_shared_batch(self, x: Tensor) -> bool:
        return self.size > 1 and x.shape[0] == self.rows


def _is_channels_last(x: Tensor) -> bool:
    return x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)


class _FusedLayer(nn.Module):
    """A layer with a fusion context; ``_context`` is set when the class is swapped."""

    _context: FusionContext


class _Linear(_FusedLayer, nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        x = self._context.to_stacked(input, self.weight.shape[2])
        y = batched_linear(x.flatten(1, -2), self.weight, self.bias)
        return self._context.from_stacked(torch.unflatten(y, 1, x.shape[1:-1]))


class _Conv2d(_FusedLayer, nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        candidates = self.weight.shape[0]
        x = self._context.to_channels(self._padded(input), self.in_channels, repeat=False)
        is_shared = x.shape[1] == self.in_channels
        if is_shared and self.groups > 1:  # the groups of an image are not those of a candidate
            x, is_shared = x.repeat(1, candidates, 1, 1), False
        y = F.conv2d(
            x,
            self.weight.flatten(0, 1),
            None if self.bias is None else self.bias.flatten(),
            self.stride,
            self._padding,
            self.dilation,
            self.groups if is_shared else self.groups * candidates,
        )
        return self._context.from_channels(y)

    @property
    def _padding(self) -> Any:
        return self.padding if self.padding_mode == "zeros" else 0

    def _padded(self, x: Tensor) -> Tensor:
        if self.padding_mode == "zeros":
            return x
        sides: list[int] = self._reversed_padding_repeated_twice
        return F.pad(x, sides, mode=self.padding_mode)


class _Conv2dSame(_Conv2d):
    def _padded(self, x: Tensor) -> Tensor:
        padded: Tensor = pad_same(x, self.weight.shape[-2:], self.stride, self.dilation)
        return padded

    @property
    def _padding(self) -> Any:
        return 0


class _Normalisation(_FusedLayer, nn.modules.batchnorm._BatchNorm):
    def forward(self, input: Tensor) -> Tensor:
        x = self._context.to_channels(input, self.num_features)
        update = self.training and self.track_running_stats
        factor = self.momentum or 0.0
        if update and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:  # candidates of one population are at the same step
                factor = 1.0 / float(self.num_batches_tracked[0])
        y = F.batch_norm(
            x,
            *(_flat(self.running_mean), _flat(self.running_var))
            if update or not self.training
            else (None, None),
            _flat(self.weight),
            _flat(self.bias),
            self.training or self.running_mean is None,
            factor,
            self.eps,
        )
        return self._context.from_channels(y)


def _flat(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.view(-1)


class _BatchNormAct2d(_Normalisation, BatchNormAct2d):  # type: ignore[misc]
    def forward(self, input: Tensor) -> Tensor:
        y: Tensor = self.act(self.drop(super().forward(input)))  # type: ignore[operator]
        return y


class _GroupNorm(_FusedLayer, nn.GroupNorm):
    def forward(self, input: Tensor) -> Tensor:
        x = self._context.to_channels(input, self.num_channels)
        groups = self.num_groups * self._context.size
        return self._context.from_channels(
            F.group_norm(x, groups, _flat(self.weight), _flat(self.bias), self.eps)
        )


class _LayerNorm(_FusedLayer, nn.LayerNorm):
    def forward(self, input: Tensor) -> Tensor:
        context, shape = self._context, self.normalized_shape
        context.mixed = True
        if context.layout == "channels":  # (..., K, *shape)
            x = torch.unflatten(input, -len(shape), (-1, shape[0]))
            return self._scaled(x, x.ndim - len(shape) - 1).flatten(-len(shape) - 1, -len(shape))
        x = context.to_stacked(input, shape[-1])  # (K, N, ..., *shape)
        return self._scaled(x, 0).flatten(0, 1)

    def _scaled(self, x: Tensor, at: int) -> Tensor:
        """Normalise and scale; dimension ``at`` of ``x`` is the candidate."""
        shape = self.normalized_shape
        y = F.layer_norm(x, shape, eps=self.eps)
        if self.weight is None:
            return y.expand(*y.shape[:at], self._context.size, *y.shape[at + 1 :])
        between = (1,) * (x.ndim - at - 1 - len(shape))
        scaled = y * self.weight.view(-1, *between, *shape)
        if self.bias is not None:
            scaled = scaled + self.bias.view(-1, *between, *shape)
        return scaled.to(y.dtype)


class _LayerNorm2d(_LayerNorm):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class _Noise(_FusedLayer):
    """Multiplies by the noise of one plain network, the same for all candidates."""

    _one_draw_per_row = False

    def forward(self, input: Tensor) -> Tensor:
        context = self._context
        if not self.training or not vars(self).get("p", vars(self).get("drop_prob")):
            return input
        if not context.mixed:
            return self._plain(input)
        dim = 0 if context.layout == "batch" else 1
        x = torch.unflatten(input, dim, (context.size, -1))
        like = x.select(dim, 0)
        if self._one_draw_per_row:
            like = like[(slice(None), *(slice(1),) * (like.ndim - 1))]
        noise = self._plain(torch.ones_like(like))
        return (x * noise.unsqueeze(dim)).flatten(dim, dim + 1)

    def _plain(self, x: Tensor) -> Tensor:
        y: Tensor = super().forward(x)
        return y


class _NoiseOfRows(_Noise):
    _one_draw_per_row = True


_FUSED_FORWARD: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: _Linear,
    TimmLinear: _Linear,
    nn.Conv2d: _Conv2d,
    Conv2dSame: _Conv2dSame,
    nn.BatchNorm1d: _Normalisation,
    nn.BatchNorm2d: _Normalisation,
    BatchNormAct2d: _BatchNormAct2d,
    nn.GroupNorm: _GroupNorm,
    TimmGroupNorm: _GroupNorm,
    nn.LayerNorm: _LayerNorm,
    LayerNorm2d: _LayerNorm2d,
    TimmLayerNorm: _LayerNorm,
    TimmLayerNorm2d: _LayerNorm2d,
    nn.Dropout: _Noise,
    nn.Dropout2d: _Noise,
    DropPath: _NoiseOfRows,
    StochasticDepth: _NoiseOfRows,
}
#: By the exact type of the plain layer: a subclass may compute something else.
FUSED_LAYERS: dict[type[nn.Module], type[nn.Module]] = {
    plain: type(f"Fused{plain.__name__}", (fused, plain), {})
    for plain, fused in _FUSED_FORWARD.items()
}
