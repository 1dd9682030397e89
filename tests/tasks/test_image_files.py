import multiprocessing
import os
import signal
import socket
import time
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from optuna_robustloss.tasks.image_files import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    FileImages,
    read_image,
)

CPU = torch.device("cpu")
DEVICES = [CPU] + [torch.device("cuda")] * torch.cuda.is_available()


def generator(seed):
    return torch.Generator().manual_seed(seed)


def images_of(source, order, batch_size=7, device=CPU, augment=None):
    batches = source.batches(order, batch_size, device=device, augment=augment)
    return torch.cat([images for _, images in batches])


@pytest.fixture
def files(tmp_path):
    """Five plain-coloured pictures of different sizes and modes; the red value is 40 * index."""
    paths = []
    for index, (width, height) in enumerate([(64, 48), (48, 64), (30, 30), (64, 64), (100, 40)]):
        paths.append(tmp_path / f"{index}.png")
        Image.new("RGB", (width, height), (40 * index, 100, 200)).save(paths[-1])
    return paths


# Files


def test_files_are_streamed_in_order_and_normalised(files):
    source = FileImages(files, size=28, num_workers=0)
    order = torch.tensor([4, 0, 2, 2, 1])
    batches = list(source.batches(order, 2, device=CPU))
    images = torch.cat([images for _, images in batches])

    assert len(source) == 5
    assert source.shape == (3, 28, 28)
    assert torch.cat([indices for indices, _ in batches]).tolist() == order.tolist()
    assert [len(images) for _, images in batches] == [2, 2, 1]
    assert images.dtype == torch.float32
    colours = torch.stack([torch.tensor([40 * i, 100, 200]) / 255 for i in order])
    expected = (colours - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    torch.testing.assert_close(images, expected[..., None, None].expand_as(images))


def test_a_plain_image_is_the_centre_of_the_resized_file(tmp_path):
    # 40 px high, so resized by 32/40 and cropped to 28: the bright left fifth is cut away.
    array = np.zeros((40, 80, 3), np.uint8)
    array[:, :16] = 255
    Image.fromarray(array).save(tmp_path / "wide.png")
    (image,) = images_of(
        FileImages([tmp_path / "wide.png"], size=28, num_workers=0), torch.arange(1)
    )
    black = -torch.tensor(IMAGENET_MEAN) / torch.tensor(IMAGENET_STD)
    torch.testing.assert_close(image, black.view(3, 1, 1).expand(3, 28, 28))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_every_colour_mode_becomes_rgb(tmp_path, mode):
    path = tmp_path / ("image.jpg" if mode == "CMYK" else "image.png")
    Image.new("RGB", (32, 32), (255, 255, 255)).convert(mode).save(path)
    image = images_of(FileImages([path], size=28, num_workers=0), torch.arange(1))
    white = (1 - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    torch.testing.assert_close(image, white.view(1, 3, 1, 1).expand(1, 3, 28, 28))


def noise_files(folder):
    noise = np.random.default_rng(0).integers(0, 256, (6, 40, 40, 3), dtype=np.uint8)
    paths = [folder / f"{index}.png" for index in range(6)]
    for path, array in zip(paths, noise, strict=True):
        Image.fromarray(array).save(path)
    return paths


def test_file_augmentation_repeats_with_the_seed(tmp_path):
    source, order = FileImages(noise_files(tmp_path), size=28, num_workers=0), torch.arange(6)
    first, same, other = (images_of(source, order, augment=generator(s)) for s in (3, 3, 4))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert not torch.equal(first, images_of(source, order))


def test_the_number_of_workers_changes_nothing(tmp_path):
    paths, order = noise_files(tmp_path), torch.tensor([5, 0, 3, 1])
    here, there = (
        images_of(FileImages(paths, size=28, num_workers=n), order, 2, augment=generator(3))
        for n in (0, 2)
    )
    assert torch.equal(here, there)


@pytest.mark.parametrize("augment", [None, generator(0)], ids=["plain", "augmented"])
def test_streaming_leaves_the_global_generator_alone(files, augment):
    before = torch.get_rng_state()
    images_of(FileImages(files, size=28, num_workers=0), torch.arange(5), augment=augment)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_file_is_named_without_a_traceback(files, workers):
    files[3].write_bytes(b"not an image")
    source = FileImages(files, size=28, num_workers=workers)
    with pytest.raises(ValueError, match=r"^\S*3\.png: cannot be read as an image: [^\n]*$"):
        images_of(source, torch.arange(5), 2)


def big_png(path, width, height):
    """Write a PNG whose header says that it is large."""
    Image.new("L", (8, 8)).save(path)
    content = bytearray(path.read_bytes())
    content[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    path.write_bytes(content)


def test_what_is_no_readable_image_is_refused_at_once(tmp_path):
    path = tmp_path / "one.png"
    for make, message in [
        (lambda: os.mkfifo(path), "it is no regular file"),
        (lambda: socket.socket(socket.AF_UNIX).bind(str(path)), "one.png: cannot be read"),
        (lambda: path.symlink_to("/dev/zero"), "it is no regular file"),
        (lambda: path.symlink_to("nowhere"), "No such file"),
        (lambda: path.mkdir(), "Is a directory|no regular file"),
        (lambda: path.write_bytes(b""), "it is none of JPEG, PNG, PPM"),
        (lambda: path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n"), "it is none of JPEG, PNG, PPM"),
        (lambda: big_png(path, 40_000, 40_000), "exceeds limit"),
        (lambda: big_png(path, 10_000, 9_000), "10000 × 9000 pixels, at most 89478485 are read"),
        (lambda: Image.new("L", (2**16, 1)).save(path), "65536 × 1 pixels are too narrow"),
    ]:
        make()
        with pytest.raises(ValueError, match=rf"one\.png: .*({message})|{message}"):
            images_of(FileImages([path], size=64, num_workers=0), torch.arange(1))
        path.rmdir() if path.is_dir() else path.unlink()


def levels(image, path):
    image.save(path)
    return np.asarray(read_image(str(path)))[0, :, 0].tolist()


def test_wide_values_are_scaled_and_not_clipped(tmp_path):
    steps = np.array([[0, 257, 128 * 257, 65535]])
    sixteen = Image.fromarray(steps.astype(np.uint16))
    for name in ("one.png", "one.tif", "one.pgm"):
        assert levels(sixteen, tmp_path / name) == [0, 1, 128, 255]
    assert levels(Image.fromarray(steps.astype(np.int32)), tmp_path / "i.tif") == [0, 1, 128, 255]
    floats = (steps / 65535).astype(np.float32)
    assert levels(Image.fromarray(floats), tmp_path / "f.tif") == [0, 1, 128, 255]
    for bad, message in ((-0.1, r"-0\.1 to 1"), (255.0, "got 0 to 255"), (np.nan, "nan")):
        floats[0, 1] = bad
        with pytest.raises(ValueError, match=rf"f\.tif: .*values in \[0, 1\], .*{message}"):
            levels(Image.fromarray(floats), tmp_path / "f.tif")


def test_an_image_is_upright_as_its_exif_orientation_says(tmp_path):
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, :8] = 255  # left half
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise
    Image.fromarray(pixels).save(tmp_path / "one.png", exif=exif)
    found = np.asarray(read_image(str(tmp_path / "one.png")))
    assert found.shape == (16, 8, 3)
    assert (found[:8].min(), found[8:].max()) == (255, 0)


def test_bad_arguments_for_files_are_refused(files):
    with pytest.raises(ValueError, match="paths is empty"):
        FileImages([])
    with pytest.raises(ValueError, match="size must be above 0"):
        FileImages(files, size=0)
    with pytest.raises(ValueError, match=r"0\.\.4, got 5\.\.5"):
        next(FileImages(files, num_workers=0).batches(torch.tensor([5]), 1, device=CPU))


def test_decoders_that_get_sigterm_print_nothing(files, capfd):
    """Even again and again, under a handler that raises as that of a worker of a search does."""

    def interrupt(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        source = FileImages(files * 20, size=28, num_workers=2)
        batches = source.batches(torch.arange(100), 10, device=CPU)
        next(batches)
        decoders = multiprocessing.active_children()
        assert len(decoders) == 2
        for decoder in decoders:
            while decoder.is_alive():
                os.kill(decoder.pid, signal.SIGTERM)
                time.sleep(0.001)
        assert [decoder.exitcode for decoder in decoders] == [0, 0]
        batches.close()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "Traceback" not in capfd.readouterr().err
