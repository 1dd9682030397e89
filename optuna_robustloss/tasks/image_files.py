"""Images streamed from files, decoded by worker processes in the order asked for."""

import os
import signal
import stat
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision.transforms import v2

from optuna_robustloss.tasks.images import check_request

# Mean and standard deviation of ImageNet's RGB values in [0, 1]: what pretrained networks expect.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Pillow warns from here on: a small file may hold an image that fills the memory.
MOST_PIXELS = 2**30 // 12
# Others of Pillow's formats start programs (EPS), or are no photographs.
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")


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
        check_request(order, batch_size, augment, len(self))
        seeds = None if augment is None else torch.randint(2**62, order.shape, generator=augment)
        starts = range(0, len(order), batch_size)
        loader = DataLoader(
            _Decoder(self._paths[order.cpu().numpy()], self._size, seeds),
            batch_size=batch_size,
            num_workers=min(self.num_workers, len(starts)),
            collate_fn=_collate,
            worker_init_fn=_detach_signals,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # without one the loader draws from the global generator
        )
        order = order.to(device)
        mean = torch.tensor(IMAGENET_MEAN, device=device).view(1, 3, 1, 1)
        std = torch.tensor(IMAGENET_STD, device=device).view(1, 3, 1, 1)
        for start, pixels in zip(starts, loader, strict=True):
            if isinstance(pixels, str):
                raise ValueError(pixels)
            images = pixels.to(device, non_blocking=True).to(torch.float32)
            yield order[start : start + batch_size], images.div_(255).sub_(mean).div_(std)


def read_image(path: str) -> Image.Image:
    """Return the image in a file as RGB, upright as its EXIF orientation says.

    16-bit grey values are scaled by 1/257, floats in [0, 1] by 255; transparency is ignored.

    Raises:
        ValueError: The file is no regular file, no image of `FORMATS`, damaged, too large, or
            has values out of range; with its path.
    """
    try:
        with open(path, "rb", opener=_open_at_once) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ValueError("it is no regular file")
            try:
                image = Image.open(file, formats=FORMATS)
            except UnidentifiedImageError:
                raise ValueError(f"it is none of {', '.join(FORMATS)}") from None
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(
                    f"it has {image.width} × {image.height} pixels, at most {MOST_PIXELS} are read"
                )
            image.load()
            with suppress(Exception):  # damaged EXIF data says nothing about the pixels
                ImageOps.exif_transpose(image, in_place=True)
            return _as_rgb(image)
    except Exception as error:  # Pillow raises whatever its decoders meet in damaged files
        raise ValueError(f"{path}: cannot be read as an image: {error}") from error


def _open_at_once(path: str, flags: int) -> int:
    """Open a file; a named pipe, which would wait for a writer, too."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode != "F" and not image.mode.startswith("I"):
        return image.convert("RGB")
    values = np.asarray(image, dtype=np.float64)  # Pillow would clip these at 255
    most = 1.0 if image.mode == "F" else 65535.0
    if not (values.min() >= 0 and values.max() <= most):  # also NaN
        raise ValueError(
            f"mode {image.mode!r} must hold values in [0, {most:g}], "
            f"got {values.min():g} to {values.max():g}"
        )
    return Image.fromarray((values * (255 / most)).round().astype(np.uint8)).convert("RGB")


class _Decoder(Dataset[Tensor | str]):
    """uint8 (3, size, size) images of one pass over the data; runs in the worker processes.

    What is wrong with a file is its item, a text: an exception would bring a worker's traceback.
    """

    def __init__(self, paths: NDArray[np.bytes_], size: int, seeds: Tensor | None) -> None:
        self._paths = paths
        self._seeds = seeds
        self._size = size
        if seeds is None:
            steps = [v2.Resize(round(size * 8 / 7)), v2.CenterCrop(size)]
        else:
            steps = [v2.RandomResizedCrop(size), v2.RandomHorizontalFlip()]
        self._transform = v2.Compose([*steps, v2.PILToTensor()])

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, position: int) -> Tensor | str:
        path = os.fsdecode(self._paths[position])
        try:
            image = read_image(path)
        except ValueError as error:
            return str(error)
        short, long = sorted(image.size)
        if long / short * (self._size * 8 / 7) ** 2 > MOST_PIXELS:
            return f"{path}: {image.width} × {image.height} pixels are too narrow to be resized"
        # The transforms know only the global generator; only the CPU's is seeded and restored.
        with torch.random.fork_rng(devices=[]):
            if self._seeds is not None:
                torch.default_generator.manual_seed(int(self._seeds[position]))
            return cast(Tensor, self._transform(image))


def _collate(items: list[Tensor | str]) -> Any:
    """Return a batch (B, 3, size, size), or the first text."""
    return next((item for item in items if isinstance(item, str)), None) or default_collate(items)


def _detach_signals(worker: int) -> None:
    """Leave signals to the process that trains: it ends its workers, by SIGTERM if need be.

    Ctrl-C goes to a process group, which workers leave. The handler of SIGTERM that they inherit
    raises an exception, whose traceback a worker would print while it ends.
    """
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    if hasattr(os, "setpgrp"):
        os.setpgrp()


def _available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
