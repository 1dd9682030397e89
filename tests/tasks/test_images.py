import pytest
import torch

from optuna_robustloss.tasks.images import TensorImages, crop_and_mirror, pixel_moments

CPU = torch.device("cpu")
DEVICES = [CPU] + [torch.device("cuda")] * torch.cuda.is_available()


def generator(seed):
    return torch.Generator().manual_seed(seed)


def images_of(source, order, batch_size=7, device=CPU, augment=None):
    batches = source.batches(order, batch_size, device=device, augment=augment)
    return torch.cat([images for _, images in batches])


@pytest.fixture
def pixels():
    return torch.randint(0, 256, (40, 3, 12, 10), dtype=torch.uint8, generator=generator(0))


@pytest.fixture
def source(pixels):
    return TensorImages(pixels, *pixel_moments(pixels))


# Pixel statistics


def test_moments_are_those_of_the_float_image(pixels):
    mean, std = pixel_moments(pixels)
    scaled = pixels.double() / 255
    assert mean == pytest.approx(scaled.mean((0, 2, 3)).tolist())
    assert std == pytest.approx(scaled.std((0, 2, 3), correction=0).tolist())


def test_a_constant_channel_normalises_to_zero():
    pixels = torch.full((4, 1, 5, 5), 77, dtype=torch.uint8)
    source = TensorImages(pixels, *pixel_moments(pixels))
    assert images_of(source, torch.arange(4)).abs().max() < 1e-6


# In memory


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_batches_have_the_promised_shape_type_and_device(source, device):
    batches = list(source.batches(torch.arange(40), 16, device=device))
    assert [len(images) for _, images in batches] == [16, 16, 8]
    for indices, images in batches:
        assert images.shape[1:] == source.shape == (3, 12, 10)
        assert (images.dtype, indices.dtype) == (torch.float32, torch.int64)
        assert images.device.type == indices.device.type == device.type


def test_training_images_are_normalised(source):
    images = images_of(source, torch.arange(40)).double()
    torch.testing.assert_close(images.mean((0, 2, 3)), torch.zeros(3).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        images.std((0, 2, 3), correction=0), torch.ones(3).double(), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_batches_follow_the_order(source, pixels, device):
    order = torch.tensor([5, 3, 3, 39, 0, 17, 2])
    indices, images = zip(*source.batches(order, 3, device=device), strict=True)
    assert torch.cat(indices).tolist() == order.tolist()
    mean, std = (torch.tensor(m).view(3, 1, 1) for m in (source.mean, source.std))
    expected = (pixels[order].float() / 255 - mean) / std
    torch.testing.assert_close(torch.cat(images).cpu(), expected, atol=1e-5, rtol=1e-5)


def test_an_empty_order_gives_no_batch(source):
    assert not list(source.batches(torch.arange(0), 4, device=CPU))


def test_a_batch_may_be_changed_in_place(source):
    first = images_of(source, torch.arange(40))
    for indices, images in source.batches(torch.arange(40), 8, device=CPU):
        images.zero_()
        indices.zero_()
    torch.testing.assert_close(images_of(source, torch.arange(40)), first)


def test_pixels_are_copied_to_a_device_once(source):
    assert source._on(CPU)[0] is source._on(torch.device("cpu"))[0]


# Augmentation


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("padding", [0, 1, 4])
def test_crop_and_mirror_equal_a_slow_reference(pixels, padding, device):
    count, _, height, width = pixels.shape
    top, left = torch.randint(2 * padding + 1, (2, count), generator=generator(1))
    mirror = torch.rand(count, generator=generator(2)) < 0.5

    expected = []
    for image, y, x, mirrored in zip(pixels, top, left, mirror, strict=True):
        framed = torch.zeros(3, height + 2 * padding, width + 2 * padding, dtype=torch.uint8)
        framed[:, padding : padding + height, padding : padding + width] = image
        crop = framed[:, y : y + height, x : x + width]
        expected.append(torch.flip(crop, [2]) if mirrored else crop)

    moved = crop_and_mirror(*(t.to(device) for t in (pixels, top, left, mirror)), padding)
    assert torch.equal(moved.cpu(), torch.stack(expected))


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_augmentation_repeats_with_the_seed(source, device):
    order = torch.arange(40)
    first, same, other = (
        images_of(source, order, device=device, augment=generator(seed)) for seed in (3, 3, 4)
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_a_generator_goes_on_to_new_augmentations(source):
    order, one = torch.arange(40), generator(3)
    assert not torch.equal(
        images_of(source, order, augment=one), images_of(source, order, augment=one)
    )


def test_augmentation_does_not_depend_on_the_batch_size(source):
    order = torch.arange(40)
    small, large = (images_of(source, order, size, augment=generator(3)) for size in (3, 40))
    torch.testing.assert_close(small, large)


def test_augmentation_leaves_the_global_generator_alone(source):
    before = torch.get_rng_state()
    images_of(source, torch.arange(40), augment=generator(3))
    assert torch.equal(torch.get_rng_state(), before)


def test_every_shift_and_mirror_occurs_about_equally_often():
    # A single bright pixel in the middle shows where each image was moved.
    pixels = torch.zeros(1, 1, 9, 9, dtype=torch.uint8)
    pixels[0, 0, 4, 2] = 255
    source = TensorImages(pixels, [0.0], [1.0], padding=1)
    moved = images_of(source, torch.zeros(6000, dtype=torch.int64), 500, augment=generator(0))
    heat = moved.sum((0, 1)) / 6000
    seen = heat[3:6][:, [1, 2, 3, 5, 6, 7]]  # 3 rows times 3 columns, straight and mirrored
    torch.testing.assert_close(seen, torch.full((3, 6), 1 / 18), atol=0.015, rtol=0)
    assert heat.sum() == pytest.approx(1)


def test_the_frame_is_black_as_pixels_are_not_as_normalised_ones():
    pixels = torch.full((50, 1, 8, 8), 255, dtype=torch.uint8)
    source = TensorImages(pixels, [0.5], [0.25])
    values = images_of(source, torch.arange(50), augment=generator(0)).unique()
    torch.testing.assert_close(values, torch.tensor([-2.0, 2.0]))


def test_flip_can_be_switched_off(pixels):
    source = TensorImages(pixels, *pixel_moments(pixels), padding=0, flip=False)
    order = torch.arange(40)
    torch.testing.assert_close(
        images_of(source, order, augment=generator(0)), images_of(source, order)
    )


# Errors


@pytest.mark.parametrize(
    ("order", "batch_size", "message"),
    [
        (torch.arange(3.0), 2, "1-D int64"),
        (torch.zeros(2, 2, dtype=torch.int64), 2, "1-D int64"),
        (torch.tensor([0, 40]), 2, r"0\.\.39, got 0\.\.40"),
        (torch.tensor([-1, 3]), 2, r"0\.\.39, got -1\.\.3"),
        (torch.arange(3), 0, "batch_size must be at least 1, got 0"),
    ],
)
def test_a_bad_request_is_refused(source, order, batch_size, message):
    with pytest.raises(ValueError, match=message):
        next(source.batches(order, batch_size, device=CPU))


def test_unfit_pixels_are_refused():
    for pixels, mean, std, message in [
        (torch.zeros(2, 1, 4, 4), [0.5], [0.5], "uint8"),
        (torch.zeros(2, 4, 4, dtype=torch.uint8), [0.5], [0.5], "uint8 tensor"),
        (torch.zeros(0, 1, 4, 4, dtype=torch.uint8), [0.5], [0.5], "non-empty"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), [0.5], [0.5], "3 values"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), [0.5], [0.0], "std above 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            TensorImages(pixels, mean, std)


def test_a_negative_padding_is_refused(pixels):
    with pytest.raises(ValueError, match="got -1"):
        TensorImages(pixels, *pixel_moments(pixels), padding=-1)
