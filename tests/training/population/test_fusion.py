"""Fused and vectorised populations against the plain networks, in double precision."""

import copy
from functools import partial

import pytest
import torch
from timm.layers import (
    BatchNormAct2d,
    Conv2dSame,
    DropPath,
)
from timm.layers import GroupNorm as TimmGroupNorm
from timm.layers import LayerNorm as TimmLayerNorm
from timm.layers import LayerNorm2d as TimmLayerNorm2d
from timm.layers import Linear as TimmLinear
from torch import nn
from torchvision.models.convnext import LayerNorm2d
from torchvision.ops import StochasticDepth

from optuna_robustloss.tasks.models import build_model
from optuna_robustloss.training.population.fusion import Fused, NotFusableError, verify
from optuna_robustloss.training.population.vmapped import Vmapped
from training.nets import (
    BATCH,
    BUILDERS,
    CHANNELS,
    Attention,
    Branches,
    ChannelsLast,
    Tied,
    both_layouts,
    convolutional,
    every_build,
    images,
    perceptron,
)

LAYERS = {
    "perceptron": perceptron(nn.ReLU(), nn.Linear(8, 8, bias=False), nn.GELU()),
    "image first": nn.Sequential(
        nn.BatchNorm2d(3), nn.Dropout(0.3), nn.Flatten(), nn.Linear(192, 5)
    ),
    "shared dropout": nn.Sequential(nn.Dropout2d(0.3), nn.Flatten(), nn.Linear(192, 5)),
    "norm of images": nn.Sequential(nn.LayerNorm((3, 8, 8)), nn.Flatten(), nn.Linear(192, 5)),
    "plain norm of images": nn.Sequential(
        nn.LayerNorm((3, 8, 8), elementwise_affine=False), nn.Flatten(), nn.Linear(192, 5)
    ),
    "timm linear": perceptron(nn.ReLU(), TimmLinear(8, 8)),
    "batch norm": convolutional(nn.BatchNorm2d(6), nn.ReLU(inplace=True)),
    "batch norm, cumulative": convolutional(nn.BatchNorm2d(6, momentum=None)),
    "batch norm, no statistics": convolutional(nn.BatchNorm2d(6, track_running_stats=False)),
    "batch norm, not affine": convolutional(nn.BatchNorm2d(6, affine=False)),
    "batch norm of features": perceptron(nn.BatchNorm1d(8), nn.SiLU()),
    "batch norm of timm": convolutional(BatchNormAct2d(6)),
    "grouped": convolutional(
        nn.Conv2d(6, 12, 3, groups=3), nn.Conv2d(12, 12, 3, groups=12), width=12
    ),
    "grouped images": nn.Sequential(nn.Conv2d(3, 6, 3, groups=3), nn.Flatten(), nn.Linear(216, 5)),
    "stride, dilation": convolutional(nn.Conv2d(6, 6, 3, stride=2), nn.Conv2d(6, 6, 2, dilation=2)),
    "reflected": convolutional(nn.Conv2d(6, 6, 3, padding=1, padding_mode="reflect", bias=False)),
    "same": convolutional(nn.Conv2d(6, 6, 3, padding="same"), Conv2dSame(6, 6, 3, stride=2)),
    "group norm": convolutional(nn.GroupNorm(3, 6)),
    "group norm, not affine": convolutional(nn.GroupNorm(2, 6, affine=False)),
    "group norm of timm": convolutional(TimmGroupNorm(6, num_groups=2)),
    "layer norm": perceptron(nn.LayerNorm(8)),
    "layer norm, no bias": perceptron(nn.LayerNorm(8, bias=False), TimmLayerNorm(8)),
    "layer norm, not affine": perceptron(nn.LayerNorm(8, elementwise_affine=False)),
    "layer norm of maps": convolutional(
        nn.LayerNorm((6, 8, 8)), LayerNorm2d(6), TimmLayerNorm2d(6)
    ),
    "dropout": perceptron(nn.ReLU(), nn.Dropout(0.4), nn.Dropout(0.0)),
    "dropout of maps": convolutional(nn.Dropout(0.4), nn.Dropout2d(0.3)),
    "drop path": convolutional(
        DropPath(0.4), StochasticDepth(0.3, "row"), StochasticDepth(0.1, "batch")
    ),
    "branches": Branches(),
    "tied": Tied(),
    "channels last": ChannelsLast(),
    "frozen": perceptron(nn.ReLU(), nn.Linear(8, 8).requires_grad_(False)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer(name):
    for build in (CHANNELS, BATCH):
        verify(build, LAYERS[name], images())
    if "cumulative" not in name:
        verify(Vmapped, LAYERS[name], images())


def test_attention_fuses_in_the_batch_layout():
    verify(BATCH, Attention(), images())
    verify(Vmapped, Attention(), images())
    with pytest.raises(NotFusableError, match="Attention does not run as a population"):
        verify(CHANNELS, Attention(), images())


@pytest.mark.parametrize("name", ["mlp3", "cnn4", "jocor", "jocor-code"])
@every_build
def test_networks_of_the_paper(name, build):
    network = build_model(name, num_classes=10, image_shape=(1, 16, 16))
    verify(build, network, images(4, 1, 16))


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("timm/mobilenetv3_small_050", CHANNELS),
        ("torchvision/squeezenet1_1", BATCH),
        ("torchvision/shufflenet_v2_x0_5", BATCH),  # shuffles channels, which CHANNELS cannot
    ],
)
def test_networks_of_libraries(name, build):
    network = build_model(name, num_classes=10, image_shape=(3, 32, 32))
    verify(build, network, images(4, 3, 32))


def test_channels_last_stays():
    network = convolutional(nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6), nn.MaxPool2d(2))
    network = network.to(memory_format=torch.channels_last)
    for build in BUILDERS.values():
        verify(build, network, images())


# --- What does not fuse -------------------------------------------------------------------------


class Shuffled(nn.Module):
    """Mixes channels in its own code: fits the channel layout and is wrong there."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6, 5)

    def forward(self, x):
        x = self.stem(x)
        x = x.view(x.shape[0], 2, -1, *x.shape[2:]).transpose(1, 2).flatten(1, 2)
        return self.head(x.cumsum(1).mean((2, 3)))


def test_a_different_result_is_detected():
    with pytest.raises(NotFusableError, match=r"Shuffled .* deviate by \d"):
        verify(CHANNELS, Shuffled(), images())
    verify(BATCH, Shuffled(), images())


class OwnParameter(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.scale = perceptron(), nn.Parameter(torch.ones(5))

    def forward(self, x):
        return self.scale * self.body(x)


class Special(nn.Linear):
    pass


@both_layouts
def test_unknown_modules_are_named(build):
    with pytest.raises(NotFusableError, match=r"the network itself \(.*OwnParameter\) has scale"):
        build([OwnParameter()] * 2)
    with pytest.raises(NotFusableError, match=r"'2' \(.*Special\) has weight, bias of its own"):
        build([perceptron(Special(8, 8))] * 2)
    with pytest.raises(NotFusableError, match=r"'0' \(.*BatchNorm3d\).*BatchNorm1d, "):
        build([nn.Sequential(nn.BatchNorm3d(3))])
    hooked = perceptron(nn.Linear(8, 8))
    hooked[2].register_forward_hook(lambda *_: None)
    with pytest.raises(NotFusableError, match=r"'2' .* has hooks"):
        build([hooked])
    with pytest.raises(NotFusableError, match="no parameters"):
        build([nn.Flatten()])
    verify(Vmapped, OwnParameter(), images())


@every_build
def test_networks_must_be_alike(build):
    with pytest.raises(ValueError, match="at least one"):
        build([])
    with pytest.raises(ValueError, match=r"networks 0 and 1 .* differ at '2.weight'"):
        build([perceptron(), perceptron(nn.Linear(8, 8))])


class Doubled(Fused):
    """A population that goes wrong in the gradients of one candidate only."""

    def forward(self, images):
        logits = super().forward(images)
        if logits.requires_grad:
            factors = 1 + torch.arange(len(logits)).view(-1, 1, 1).eq(1)
            logits.register_hook(lambda gradient: gradient * factors)
        return logits


def test_wrong_gradients_are_detected():
    with pytest.raises(NotFusableError, match="deviate by 1,"):
        verify(partial(Doubled, layout="batch"), perceptron(nn.ReLU()), images())


def test_verification_changes_nothing():
    network = convolutional(nn.BatchNorm2d(6), nn.Dropout(0.5)).double().eval()
    before, state = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    verify(BATCH, network, images())
    assert torch.equal(state, torch.get_rng_state())
    assert not network.training
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
    assert all(p.grad is None for p in network.parameters())
