"""Where images come from: one tensor in memory, or files streamed from disk.

Both kinds answer the same call, `batches`, with normalised float32 images on the device that
trains. Small data sets live there as one uint8 tensor (no loader, no copies per batch); large
ones are read by worker processes in the order asked for.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets.folder import pil_loader
from torchvision.transforms import v2

# Mean and standard deviation of ImageNet's RGB values in [0, 1]: what pretrained networks expect.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


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


def _check_request(
    order: Tensor, batch_size: int, augment: torch.Generator | None, count: int
) -> None:
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
        _check_request(order, batch_size, augment, len(self))
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


def _available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class FileImages:
    """RGB images read from files by worker processes, as ImageNet-normalised squares.

    Plain: the shorter side resized to 8/7 of `size` (256 for 224), centre crop. Augmented: random
    resized crop and mirror image, seeded per image, so the number of workers changes nothing.

    Args:
        paths: Image files, in index order.
        size: Height and width of what the network sees, in pixels.
        num_workers: Processes that decode; 0: this one; None: one per available core, at most 16.
    """

    def __init__(
        self, paths: Sequence[str | Path], *, size: int = 224, num_workers: int | None = None
    ) -> None:
        if not len(paths):
            raise ValueError("paths is empty; give at least one image file")
        if num_workers is None:
            num_workers = min(16, _available_cores())
        if size < 1 or num_workers < 0:
            raise ValueError(f"size must be above 0, num_workers not below: {size}, {num_workers}")
        self.num_workers = num_workers
        self._size = size
        # One array of bytes: a list of a million strings would be copied into every worker
        # bit by bit, as their reference counts change.
        self._paths = np.array([os.fsencode(path) for path in paths])

    @property
    def shape(self) -> tuple[int, int, int]:
        """(3, size, size)."""
        return 3, self._size, self._size

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._paths)

    def batches(
        self,
        order: Tensor,
        batch_size: int,
        *,
        device: torch.device,
        augment: torch.Generator | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (indices, images) on `device`; see `ImageSource.batches`.

        Raises:
            ValueError: Also from the batch with a file that cannot be decoded, with its path.
        """
        _check_request(order, batch_size, augment, len(self))
        seeds = None if augment is None else torch.randint(2**62, order.shape, generator=augment)
        starts = range(0, len(order), batch_size)
        loader = DataLoader(
            _Decoder(self._paths[order.cpu().numpy()], self._size, seeds),
            batch_size=batch_size,
            num_workers=min(self.num_workers, len(starts)),
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # without one the loader draws from the global generator
        )
        order = order.to(device)
        mean = torch.tensor(IMAGENET_MEAN, device=device).view(1, 3, 1, 1)
        std = torch.tensor(IMAGENET_STD, device=device).view(1, 3, 1, 1)
        for start, pixels in zip(starts, loader, strict=True):
            images = pixels.to(device, non_blocking=True).to(torch.float32)
            yield order[start : start + batch_size], images.div_(255).sub_(mean).div_(std)


class _Decoder(Dataset[Tensor]):
    """uint8 (3, size, size) images of one pass over the data; runs in the worker processes."""

    def __init__(self, paths: NDArray[np.bytes_], size: int, seeds: Tensor | None) -> None:
        self._paths = paths
        self._seeds = seeds
        if seeds is None:
            steps = [v2.Resize(round(size * 8 / 7)), v2.CenterCrop(size)]
        else:
            steps = [v2.RandomResizedCrop(size), v2.RandomHorizontalFlip()]
        self._transform = v2.Compose([*steps, v2.PILToTensor()])

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, position: int) -> Tensor:
        path = os.fsdecode(self._paths[position])
        try:
            image = pil_loader(path)
        except OSError as error:
            raise ValueError(f"{path}: cannot be read as an image: {error}") from error
        # The transforms know only the global generator; only the CPU's is seeded and restored.
        with torch.random.fork_rng(devices=[]):
            if self._seeds is not None:
                torch.default_generator.manual_seed(int(self._seeds[position]))
            return cast(Tensor, self._transform(image))
