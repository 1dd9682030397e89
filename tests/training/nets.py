"""Small networks of every kind of layer, and functions that build a population of them."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optuna_robustloss.training.population.fusion import Fused
from optuna_robustloss.training.population.vmapped import Vmapped

CHANNELS = partial(Fused, layout="channels")
BATCH = partial(Fused, layout="batch")
BUILDERS = {"channels": CHANNELS, "batch": BATCH, "vmap": Vmapped}
SIDE = 8

every_build = pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
both_layouts = pytest.mark.parametrize("build", [CHANNELS, BATCH], ids=["channels", "batch"])


def images(number=4, channels=3, side=SIDE, dtype=torch.float64, seed=7) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(number, channels, side, side, generator=generator, dtype=dtype)


def convolutional(*layers: nn.Module, width: int = 6) -> nn.Module:
    """A convolution, the layers, and a head."""
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 3, padding=1), *layers),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, 5)),
    )


def perceptron(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE**2, 8), *layers, nn.Linear(8, 5))


class Branches(nn.Module):
    """Addition, concatenation along channels under all its names, and a layer used twice."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.twice = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        x = self.stem(x)
        y = x + self.twice(x).relu()
        x = torch.cat([x, self.twice(y)], 1)
        x = torch.concat((x, y), dim=-3)
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.inputs = nn.Linear(3 * SIDE**2, 8)
        self.one, self.other = nn.Linear(8, 8), nn.Linear(8, 8, bias=False)
        self.other.weight = self.one.weight

    def forward(self, x):
        return self.other(self.one(self.inputs(x.flatten(1))).tanh())


class Attention(nn.Module):
    """Patches, self-attention with heads, and token mixing: for the batch layout."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.norm = nn.LayerNorm(8)
        self.qkv = nn.Linear(8, 24)
        self.mix = nn.Linear(4, 4, bias=False)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.norm(self.patches(x).flatten(2).transpose(1, 2))
        q, k, v = self.qkv(x).reshape(x.shape[0], 4, 3, 2, 4).permute(2, 0, 3, 1, 4)
        x = x + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = self.mix(x.transpose(1, 2)).transpose(1, 2)
        return self.head(x.mean(1))


class ChannelsLast(nn.Module):
    """Layer norm and a linear layer on (N, H, W, C), as in ConvNeXt."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.norm = nn.LayerNorm(6)
        self.wide = nn.Linear(6, 12)
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        x = F.gelu(self.wide(self.norm(self.stem(x).permute(0, 2, 3, 1))))
        return self.head(x.permute(0, 3, 1, 2).mean((2, 3)))
