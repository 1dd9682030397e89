"""Networks by name: those of the paper, and every classifier of timm and torchvision.

The paper's own are in Gao et al., "Searching for Robustness", section 3 and Table 6. All take
images (B, C, H, W) and return logits (B, num_classes). The weights depend on PyTorch's global seed
only; the caller sets it (`torch.random.fork_rng`).
"""

import difflib
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import timm
import torch
import torchvision
from torch import nn

ImageShape = tuple[int, int, int]
"""(channels, height, width)"""

# Up to this many pixels a side, networks made for photographs get their small-image form.
_SMALL = 32
# These return a tuple of logits in training by default.
_WITH_AUXILIARY_HEADS = ("googlenet", "inception_v3")


def build_model(
    name: str, *, num_classes: int, image_shape: ImageShape, pretrained: bool = False
) -> nn.Module:
    """Build a network, freshly initialised or (for large images) with its published weights.

    Args:
        name: One of `model_names`, ``timm/NAME`` or ``torchvision/NAME``.
        num_classes: Number of logits, at least 2.
        image_shape: (channels, height, width) of the images.
        pretrained: Start from published weights. Not for the networks of Table 6, which have
            none, nor for ``vgg11`` and ``resnet18`` in their small-image form.

    Raises:
        ValueError: an unknown name (with the close ones), ``pretrained`` where there are no
            weights, or images that the network does not take.

    >>> build_model("mlp2", num_classes=10, image_shape=(1, 28, 28))[1]
    Linear(in_features=784, out_features=256, bias=True)
    """
    check_model_name(name)
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes}")
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise ValueError(f"image_shape must be (channels, height, width), got {image_shape}")
    library, _, bare = name.rpartition("/")
    if library:
        model = (
            _torchvision(bare, num_classes, image_shape, pretrained)
            if library == "torchvision"
            else timm.create_model(
                bare, pretrained=pretrained, num_classes=num_classes, in_chans=image_shape[0]
            )
        )
        return _checked(name, model, num_classes, image_shape)
    small = max(image_shape[1:]) <= _SMALL
    if name in _PHOTOGRAPHS and not small:
        return _torchvision(name, num_classes, image_shape, pretrained)
    if pretrained:
        raise ValueError(
            f"there are no pretrained weights for {name!r} on images of shape {image_shape}; "
            "take a 'timm/...' or 'torchvision/...' network"
        )
    return _OWN[name](num_classes, image_shape)


def model_names() -> list[str]:
    """Return the networks of the paper, sorted; ``timm/...`` and ``torchvision/...`` come on top.

    >>> model_names()
    ['cnn4', 'jocor', 'jocor-code', 'mlp2', 'mlp3', 'resnet18', 'vgg11']
    """
    return sorted(_OWN)


def check_model_name(name: str) -> None:
    """Raise a ValueError with the close names unless `build_model` knows the name."""
    if name in _OWN:
        return
    library, _, bare = name.rpartition("/")
    if library == "timm" and timm.is_model(bare):
        return
    torchvision_names: list[str] = torchvision.models.list_models(module=torchvision.models)
    if library == "torchvision" and bare in torchvision_names:
        return
    known = {own: own for own in model_names()}
    known |= {f"torchvision/{other}": other for other in torchvision_names}
    known |= {f"timm/{other}": other for other in timm.list_models()}
    close = difflib.get_close_matches(bare, sorted(set(known.values())), n=3)
    matches = [full for best in close for full in known if known[full] == best]
    hint = f"; close: {', '.join(matches)}" if matches else ""
    raise ValueError(
        f"unknown network {name!r}: choose from {', '.join(model_names())}, 'timm/NAME' or "
        f"'torchvision/NAME'{hint}"
    )


def _mlp(num_classes: int, image_shape: ImageShape, hidden_layers: int) -> nn.Module:
    """Table 6: FC inputs → 256 (→ 256) → classes, ReLU after each hidden layer."""
    channels, height, width = image_shape
    sizes = [channels * height * width] + [256] * hidden_layers
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], num_classes))


def _cnn4(num_classes: int, image_shape: ImageShape) -> nn.Module:
    """Table 6: two 5×5 convolutions (32, 64), FC → 1024, FC → classes.

    The table prints no pools and "FC 1024 → 1024" for 32×32 images. Without padding and with a
    2×2 max-pool after each convolution the flattened size is 64·4·4 = 1024 for 28×28 images and
    64·5·5 = 1600 for 32×32: no other reading gives the 1024, and the size is computed here.
    """
    _require_pixels("cnn4", image_shape, 16)
    channels, height, width = image_shape
    height, width = (((pixels - 4) // 2 - 4) // 2 for pixels in (height, width))
    return nn.Sequential(
        # Pool before ReLU: the maximum commutes with a monotone map, and ReLU has a quarter to do.
        *(nn.Conv2d(channels, 32, 5), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Conv2d(32, 64, 5), nn.MaxPool2d(2), nn.ReLU()),
        *(
            nn.Flatten(),
            nn.Linear(64 * height * width, 1024),
            nn.ReLU(),
            nn.Linear(1024, num_classes),
        ),
    )


def _jocor(num_classes: int, image_shape: ImageShape) -> nn.Module:
    """Table 6, after Wei et al. (CVPR 2020): six 3×3 convolutions with batch norm, three stages.

    The table ends in an 8×8 average pool: with padding 1 that is the whole 8×8 map of a 32×32
    image. A 28×28 image leaves 7×7, so the pool here is over whatever map is left.
    """
    _require_pixels("jocor", image_shape, 4)
    *layers, _last_pool = _jocor_stages(image_shape[0], last=196)
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(196, num_classes)
    )


def _jocor_code(num_classes: int, image_shape: ImageShape) -> nn.Module:
    """Build the CNN of the code of Wei et al. (hongxin001/JoCoR, model/cnn.py).

    The last convolution has 16 channels, and a third max-pool stands in place of Table 6's average
    pool: 16·4·4 = 256 features of a 32×32 image, 16·3·3 of a 28×28 one.
    """
    _require_pixels("jocor-code", image_shape, 8)
    layers = _jocor_stages(image_shape[0], last=16)
    flat = 16 * (image_shape[1] // 8) * (image_shape[2] // 8)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(flat, num_classes))


def _jocor_stages(inputs: int, last: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for widths in ((64, 64), (128, 128), (196, last)):
        for outputs in widths:
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
            inputs = outputs
        layers.append(nn.MaxPool2d(2))
    return layers


def _small_vgg11(num_classes: int, image_shape: ImageShape) -> nn.Module:
    """VGG-11 (Simonyan & Zisserman 2015, no batch norm) with one linear layer, for ≤ 32 pixels.

    Convolutions, their initialisation and that of the linear layer are torchvision's. Five pools
    need 32 pixels: smaller images are zero-padded to 32×32. ``torchvision/vgg11_bn`` has batch
    norm.
    """
    channels, height, width = image_shape
    left, top = (_SMALL - width) // 2, (_SMALL - height) // 2
    layers: list[nn.Module] = [
        nn.ZeroPad2d((left, _SMALL - width - left, top, _SMALL - height - top))
    ]
    inputs = channels
    for stage in ((64,), (128,), (256, 256), (512, 512), (512, 512)):
        for outputs in stage:
            convolution = nn.Conv2d(inputs, outputs, 3, padding=1)
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
            layers += [convolution, nn.ReLU()]
            inputs = outputs
        layers.append(nn.MaxPool2d(2))
    head = nn.Linear(inputs, num_classes)
    nn.init.normal_(head.weight, 0, 0.01)
    nn.init.zeros_(head.bias)
    return nn.Sequential(*layers, nn.Flatten(), head)


def _small_resnet18(num_classes: int, image_shape: ImageShape) -> nn.Module:
    """ResNet-18 with the CIFAR stem: 3×3 convolution of stride 1, no max-pool; for ≤ 32 pixels."""
    model: nn.Module = torchvision.models.resnet18(weights=None, num_classes=num_classes)
    stem = nn.Conv2d(image_shape[0], 64, 3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
    model.conv1 = stem
    model.maxpool = nn.Identity()
    return model


def _torchvision(
    name: str, num_classes: int, image_shape: ImageShape, pretrained: bool
) -> nn.Module:
    options: dict[str, bool | int] = {}
    if name in _WITH_AUXILIARY_HEADS:
        options["aux_logits"] = False
        if not pretrained:
            options["init_weights"] = True
    model: nn.Module
    if pretrained:
        # torchvision refuses another number of classes than the weights have.
        model = torchvision.models.get_model(name, weights="DEFAULT", **options)
        _replace_head(name, model, num_classes)
    else:
        model = torchvision.models.get_model(name, num_classes=num_classes, **options)
    if image_shape[0] != 3:
        _fit_channels(name, model, image_shape[0])
    return model


def _replace_head(name: str, model: nn.Module, num_classes: int) -> None:
    """Put a fresh last layer in place: linear, or a convolution as in SqueezeNet."""
    heads = [(p, m) for p, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    if not heads:
        raise ValueError(f"torchvision/{name} has no linear or convolutional head to replace")
    path, old = heads[-1]
    new: nn.Module
    if isinstance(old, nn.Linear):
        new = nn.Linear(old.in_features, num_classes, bias=old.bias is not None)
    else:
        new = nn.Conv2d(old.in_channels, num_classes, kernel_size=1)
    parent, _, child = path.rpartition(".")
    setattr(model.get_submodule(parent), child, new)


def _fit_channels(name: str, model: nn.Module, channels: int) -> None:
    """Give the first convolution another number of channels, from its weights.

    As timm does: one channel gets the sum over RGB, and so the response that three equal copies
    had; more repeat the RGB weights in turn, scaled to keep the size of the response.
    """
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if first is None or first.groups != 1:
        raise ValueError(f"torchvision/{name} has no first convolution to fit {channels} channels")
    weight = first.weight.detach()
    if channels == 1:
        weight = weight.sum(1, keepdim=True)
    else:
        turn = torch.arange(channels) % first.in_channels
        weight = weight[:, turn] * (first.in_channels / channels)
    first.weight = nn.Parameter(weight)
    first.in_channels = channels


def _require_pixels(name: str, image_shape: ImageShape, least: int) -> None:
    if min(image_shape[1:]) < least:
        raise ValueError(
            f"{name} needs images of at least {least}×{least} pixels, got image_shape={image_shape}"
        )


def _checked(name: str, model: nn.Module, num_classes: int, image_shape: ImageShape) -> nn.Module:
    """Return a library's network after one image went through it, so that a misfit shows here."""
    model.eval()
    try:
        with torch.no_grad():
            logits = model(torch.zeros(1, *image_shape))
    except Exception as error:  # libraries raise whatever the first failing layer raises
        raise ValueError(f"{name} does not take images of shape {image_shape}: {error}") from error
    if not isinstance(logits, torch.Tensor) or logits.shape != (1, num_classes):
        raise ValueError(
            f"{name} is no classifier: for one image it returns "
            f"{getattr(logits, 'shape', type(logits).__name__)}, not {(1, num_classes)} logits"
        )
    return model.train()


_OWN: dict[str, Callable[[int, ImageShape], nn.Module]] = {
    "mlp2": partial(_mlp, hidden_layers=1),
    "mlp3": partial(_mlp, hidden_layers=2),
    "cnn4": _cnn4,
    "jocor": _jocor,
    "jocor-code": _jocor_code,
    "vgg11": _small_vgg11,
    "resnet18": _small_resnet18,
}
# Larger images than `_SMALL` get torchvision's network of that name.
_PHOTOGRAPHS = ("vgg11", "resnet18")
