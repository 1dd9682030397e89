"""Data sets in memory: images as one uint8 tensor on the device that trains, and their labels."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

# Transition matrices are dense: 800 MB for as many classes.
MOST_CLASSES = 10_000


class ImageSource(Protocol):
    """Images by index."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image as the network sees it."""

    def __len__(self) -> int:
        """Return the number of images."""

    def batches(
        self,
        order: Tensor,
        batch_size: int,
        *,
        device: torch.device,
        augment: torch.Generator | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (indices int64 (B,), images float32 (B, ch, H, W)), both on `device`.

        Args:
            order: int64 (n,), the indices to read, in this order; repeats are allowed.
            batch_size: Images per batch; the last batch may be shorter.
            device: Where the network is.
            augment: A CPU generator switches random augmentation on; the same state of the
                generator gives the same images. None gives the plain images.

        Raises:
            ValueError: `order` is not 1-D int64 or leaves 0..len-1, `batch_size` is below 1, or
                `augment` is not a CPU generator. Raised when the first batch is asked for.
        """


def pixel_moments(pixels: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of uint8 `pixels` (N, ch, H, W), scaled to [0, 1].

    A constant channel gets the standard deviation 1, so that it normalises to zero.
    """
    # 256 counts hold all there is to know: exact, without a float64 copy of the data set.
    levels = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in pixels.unbind(1):
        weights = torch.bincount(channel.reshape(-1), minlength=256).double() / channel.numel()
        mean = (weights * levels).sum()
        std = (weights * (levels - mean) ** 2).sum().sqrt()
        means.append(mean.item())
        stds.append(std.item() or 1.0)
    return tuple(means), tuple(stds)


def crop_and_mirror(
    pixels: Tensor, top: Tensor, left: Tensor, mirror: Tensor, padding: int
) -> Tensor:
    """Shift each of `pixels` (B, ch, H, W) within a black frame, then mirror some left to right.

    Args:
        pixels: Images of any dtype; zero is black.
        top: int64 (B,) in 0..2*padding, first row of the crop from the framed image.
        left: int64 (B,) in 0..2*padding, its first column.
        mirror: bool (B,), which crops to mirror.
        padding: Width of the frame in pixels.
    """
    height, width = pixels.shape[-2:]
    framed = F.pad(pixels, [padding] * 4)
    windows = framed.unfold(2, height, 1).unfold(3, width, 1)  # (B, ch, top, left, H, W), a view
    cropped = windows[torch.arange(len(pixels), device=pixels.device), :, top, left]
    return torch.where(mirror[:, None, None, None], cropped.flip(-1), cropped)


def check_request(
    order: Tensor, batch_size: int, augment: torch.Generator | None, count: int
) -> None:
    """Raise the errors of `ImageSource.batches` for a source of ``count`` images."""
    if order.dtype != torch.int64 or order.ndim != 1:
        raise ValueError(f"order must be 1-D int64, got {tuple(order.shape)} {order.dtype}")
    if len(order):
        low, high = order.aminmax()  # checked here: on a GPU a bad index would end the process
        if low < 0 or high >= count:
            raise ValueError(f"order must stay in 0..{count - 1}, got {int(low)}..{int(high)}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if augment is not None and augment.device.type != "cpu":
        raise ValueError(
            f"augment must be a CPU generator, got one on {augment.device}; "
            "random numbers drawn on the CPU repeat on every device"
        )


class TensorImages:
    """Images held as one uint8 tensor, copied to each device once.

    With augmentation an image is shifted by up to `padding` pixels each way within a black frame
    and, if `flip`, mirrored with probability 1/2: the usual CIFAR protocol.

    Args:
        pixels: uint8 (N, ch, H, W).
        mean: Per channel, of pixels / 255.
        std: Per channel, of pixels / 255; positive.
        padding: Width of the frame, in pixels; 0 switches the shift off.
        flip: False for images whose mirror image means something else, such as characters.
    """

    def __init__(
        self,
        pixels: Tensor,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        padding: int = 4,
        flip: bool = True,
    ) -> None:
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or not pixels.numel():
            raise ValueError(
                "pixels must be a non-empty uint8 tensor (N, ch, H, W), "
                f"got {tuple(pixels.shape)} {pixels.dtype}"
            )
        if not len(mean) == len(std) == pixels.shape[1] or min(std) <= 0:
            raise ValueError(
                f"mean and std must hold {pixels.shape[1]} values, one per channel, std above 0; "
                f"got mean {tuple(mean)}, std {tuple(std)}"
            )
        if padding < 0:
            raise ValueError(f"padding must be 0 or more pixels, got {padding}")
        self.mean = tuple(mean)
        self.std = tuple(std)
        self.padding = padding
        self.flip = flip
        self._pixels = pixels.contiguous()
        self._copies: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = {}

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        _, channels, height, width = self._pixels.shape
        return channels, height, width

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._pixels)

    def batches(
        self,
        order: Tensor,
        batch_size: int,
        *,
        device: torch.device,
        augment: torch.Generator | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (indices, images) on `device`; see `ImageSource.batches`."""
        check_request(order, batch_size, augment, len(self))
        pixels, scale, offset = self._on(device)
        # One transfer per pass over the data, not one per batch.
        order = order.to(device)
        moves = None if augment is None else self._draw(len(order), augment).to(device)
        for start in range(0, len(order), batch_size):
            part = slice(start, start + batch_size)
            batch = pixels.index_select(0, order[part])
            if moves is not None:
                top, left, mirror = moves[:, part]
                batch = crop_and_mirror(batch, top, left, mirror.bool(), self.padding)
            yield order[part], batch.to(torch.float32).mul_(scale).add_(offset)

    def _draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw int64 (3, count): top and left in 0..2*padding, mirror in 0..1."""
        shifts = torch.randint(2 * self.padding + 1, (2, count), generator=generator)
        mirror = torch.randint(2 if self.flip else 1, (1, count), generator=generator)
        return torch.cat([shifts, mirror])

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Return the pixels on `device`, and (1, ch, 1, 1) factors: pixels * scale + offset."""
        device = torch.empty(0, device=device).device  # "cuda" and "cuda:0" share one copy
        if device not in self._copies:
            mean = torch.tensor(self.mean, device=device).view(1, -1, 1, 1)
            std = torch.tensor(self.std, device=device).view(1, -1, 1, 1)
            self._copies[device] = (self._pixels.to(device), 1 / (255 * std), -mean / std)
        return self._copies[device]


@dataclass(frozen=True, eq=False)
class DataSet:
    """Images and labels of one classification problem.

    Attributes:
        name: The name it was loaded by.
        num_classes: C, from 2 to 10 000; every label is in 0..C-1.
        train: Training images.
        train_labels: Clean int64 (N,); None where they are unknown (Clothing1M).
        test: Test images.
        test_labels: Clean int64 (M,).
        train_noisy_labels: int64 (N,) labels that come noisy with the data, if any.
        validation: The data set's own clean validation images, if any.
        validation_labels: Clean int64, one for each of `validation`.
        class_names: C names, or empty.

    Raises:
        ValueError: Labels and images do not fit each other.
    """

    name: str
    num_classes: int
    train: ImageSource
    train_labels: Tensor | None
    test: ImageSource
    test_labels: Tensor
    train_noisy_labels: Tensor | None = None
    validation: ImageSource | None = None
    validation_labels: Tensor | None = None
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 2 <= self.num_classes <= MOST_CLASSES:
            raise ValueError(
                f"{self.name}: the number of classes must be in 2..{MOST_CLASSES}, "
                f"got {self.num_classes}"
            )
        if self.train_labels is None and self.train_noisy_labels is None:
            raise ValueError(f"{self.name}: needs train_labels or train_noisy_labels")
        if (self.validation is None) != (self.validation_labels is None):
            raise ValueError(f"{self.name}: validation needs both images and labels, or neither")
        if self.class_names and len(self.class_names) != self.num_classes:
            raise ValueError(
                f"{self.name}: {len(self.class_names)} class_names for {self.num_classes} classes"
            )
        for field, images in (
            ("train_labels", self.train),
            ("train_noisy_labels", self.train),
            ("test_labels", self.test),
            ("validation_labels", self.validation),
        ):
            labels = getattr(self, field)
            if labels is None or images is None:
                continue
            if labels.dtype != torch.int64 or labels.shape != (len(images),):
                raise ValueError(
                    f"{self.name}: {field} must be int64 ({len(images)},), one for each image, "
                    f"got {tuple(labels.shape)} {labels.dtype}"
                )
            if not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
                raise ValueError(
                    f"{self.name}: {field} must be in 0..{self.num_classes - 1}, "
                    f"got {int(labels.min())}..{int(labels.max())}"
                )
