import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from optuna_robustloss.tasks.models import build_model, model_names

MNIST, CIFAR, DIGITS = (1, 28, 28), (3, 32, 32), (1, 8, 8)


def build(name, image_shape=CIFAR, num_classes=10, seed=0, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_model(name, num_classes=num_classes, image_shape=image_shape, **options)


def num_parameters(model):
    return sum(p.numel() for p in model.parameters())


def images(n, image_shape):
    return torch.randn(n, *image_shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def offline_weights(monkeypatch):
    """torchvision's networks "with weights", whose weights are random and need no download."""
    original = torchvision.models.get_model

    def get_model(name, weights=None, **options):
        assert weights is None or "num_classes" not in options  # torchvision would refuse
        return original(name, weights=None, **options)

    monkeypatch.setattr(torchvision.models, "get_model", get_model)
    return original


@pytest.mark.parametrize("image_shape", [MNIST, CIFAR])
@pytest.mark.parametrize("name", model_names())
def test_every_own_network_takes_both_image_sizes(name, image_shape):
    model = build(name, image_shape, num_classes=7)
    assert model.training
    assert model(images(2, image_shape)).shape == (2, 7)


@pytest.mark.parametrize("name", ["mlp2", "mlp3", "jocor", "vgg11", "resnet18"])
def test_networks_that_take_eight_by_eight_images(name):
    assert build(name, DIGITS)(images(2, DIGITS)).shape == (2, 10)


@pytest.mark.parametrize("name", ["mlp2", "cnn4", "jocor", "vgg11"])
def test_images_need_not_be_square(name):
    assert build(name, (2, 20, 31))(images(2, (2, 20, 31))).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "image_shape", "expected"),
    [
        ("mlp2", MNIST, (784 * 256 + 256) + (256 * 10 + 10)),
        ("mlp3", MNIST, (784 * 256 + 256) + (256 * 256 + 256) + (256 * 10 + 10)),
        ("mlp2", CIFAR, (3072 * 256 + 256) + (256 * 10 + 10)),
        (
            "cnn4",
            MNIST,  # flattened 64·4·4 = 1024, as Table 6 prints
            (25 * 32 + 32) + (25 * 32 * 64 + 64) + (1024 * 1024 + 1024) + (1024 * 10 + 10),
        ),
        (
            "cnn4",
            CIFAR,  # flattened 64·5·5 = 1600
            (25 * 3 * 32 + 32) + (25 * 32 * 64 + 64) + (1600 * 1024 + 1024) + (1024 * 10 + 10),
        ),
        (
            "jocor",
            CIFAR,  # 3×3 weights and biases, two numbers per channel of batch norm, then 196 → 10
            9 * (3 * 64 + 64 * 64 + 64 * 128 + 128 * 128 + 128 * 196 + 196 * 196)
            + 3 * 2 * (64 + 128 + 196)
            + (196 * 10 + 10),
        ),
        (
            "jocor-code",
            CIFAR,  # hongxin001/JoCoR, model/cnn.py: 196 → 16 channels, and FC 256 → 10
            9 * (3 * 64 + 64 * 64 + 64 * 128 + 128 * 128 + 128 * 196 + 196 * 16)
            + 3 * (2 * 64 + 2 * 128 + 196 + 16)
            + (256 * 10 + 10),
        ),
    ],
)
def test_parameters_are_those_of_table_6(name, image_shape, expected):
    assert num_parameters(build(name, image_shape)) == expected


def test_cnn4_is_convolution_relu_pool_twice_and_two_linear_layers():
    model, x = build("cnn4", CIFAR), images(3, CIFAR)
    c1, c2, f1, f2 = (m for m in model if isinstance(m, nn.Conv2d | nn.Linear))
    h = F.max_pool2d(F.relu(F.conv2d(x, c1.weight, c1.bias)), 2)
    h = F.max_pool2d(F.relu(F.conv2d(h, c2.weight, c2.bias)), 2)
    h = F.relu(F.linear(h.flatten(1), f1.weight, f1.bias))
    assert torch.equal(model(x), F.linear(h, f2.weight, f2.bias))


def test_jocor_pools_the_whole_eight_by_eight_map_of_table_6():
    model, x = build("jocor").eval(), images(2, CIFAR)
    features = model[: next(i for i, m in enumerate(model) if isinstance(m, nn.AdaptiveAvgPool2d))]
    h = features(x)
    assert h.shape == (2, 196, 8, 8)
    assert torch.allclose(model(x), model[-1](F.avg_pool2d(h, 8).flatten(1)), atol=1e-6)


def test_jocor_code_is_the_authors_forward_pass():
    model, x = build("jocor-code"), images(2, CIFAR)
    convolutions = [m for m in model if isinstance(m, nn.Conv2d)]
    norms = [m for m in model if isinstance(m, nn.BatchNorm2d)]
    h = x
    for index, (convolution, norm) in enumerate(zip(convolutions, norms, strict=True)):
        h = F.conv2d(h, convolution.weight, convolution.bias, padding=1)
        h = F.relu(F.batch_norm(h, None, None, norm.weight, norm.bias, training=True))
        if index % 2:
            h = F.max_pool2d(h, 2)
    assert h.shape == (2, 16, 4, 4)
    assert torch.allclose(model(x), model[-1](h.flatten(1)), atol=1e-5)


def test_small_vgg11_has_torchvisions_features():
    model, x = build("vgg11"), images(2, CIFAR)
    theirs = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["A"])
    ours = [p for m in model if isinstance(m, nn.Conv2d) for p in m.parameters()]
    with torch.no_grad():
        for a, b in zip(theirs.parameters(), ours, strict=True):
            a.copy_(b)
    assert torch.allclose(model(x), model[-1](theirs(x).flatten(1)), atol=1e-6)


def test_small_vgg11_starts_like_torchvisions_vgg():
    convolutions = [m for m in build("vgg11") if isinstance(m, nn.Conv2d)]
    for convolution in convolutions[1:]:
        expected = (2 / (9 * convolution.out_channels)) ** 0.5  # Kaiming normal, fan out, ReLU
        assert convolution.weight.std().item() == pytest.approx(expected, rel=0.05)
        assert not convolution.bias.any()


def test_vgg11_puts_small_images_in_the_middle_of_a_black_square():
    model = build("vgg11", DIGITS)
    padded = model[0](torch.ones(1, *DIGITS))
    assert padded.shape == (1, 1, 32, 32)
    assert padded[..., 12:20, 12:20].min() == 1
    assert padded.sum() == 64


def test_resnet18_has_the_cifar_stem_up_to_32_pixels_only():
    small, large = build("resnet18", CIFAR), build("resnet18", (3, 64, 64))
    assert (small.conv1.kernel_size, small.conv1.stride) == ((3, 3), (1, 1))
    assert isinstance(small.maxpool, nn.Identity)
    assert (large.conv1.kernel_size, large.conv1.stride) == ((7, 7), (2, 2))
    assert isinstance(large.maxpool, nn.MaxPool2d)


def test_vgg11_on_large_images_is_torchvisions(monkeypatch):
    asked = []
    monkeypatch.setattr(
        torchvision.models,
        "get_model",
        lambda name, **options: asked.append((name, options)) or nn.Linear(1, 1),
    )
    build("vgg11", (3, 64, 64))
    assert asked == [("vgg11", {"num_classes": 10})]


@pytest.mark.parametrize("name", ["mlp2", "jocor", "resnet18", "timm/resnet10t"])
def test_weights_follow_the_global_seed(name):
    a, b, c = (build(name, seed=s).state_dict() for s in (1, 1, 2))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert any(not torch.equal(a[k], c[k]) for k in a)


@pytest.mark.parametrize(
    ("name", "image_shape"),
    [
        ("timm/resnet10t", (1, 32, 32)),
        ("torchvision/shufflenet_v2_x0_5", (1, 32, 32)),
        ("torchvision/mobilenet_v3_small", (4, 32, 32)),
        ("torchvision/googlenet", (3, 64, 64)),
    ],
)
def test_library_networks_take_any_number_of_channels_and_classes(name, image_shape):
    model = build(name, image_shape, num_classes=7)
    assert model.training
    assert model(images(2, image_shape)).shape == (2, 7)


@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "mobilenet_v3_small", "squeezenet1_1"])
def test_pretrained_torchvision_networks_get_a_new_head_and_keep_the_rest(offline_weights, name):
    torch.manual_seed(0)
    expected = offline_weights(name).state_dict()
    model = build(f"torchvision/{name}", (3, 48, 48), num_classes=7, pretrained=True)
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, expected[k])}
    assert {k.rpartition(".")[2] for k in changed} == {"weight", "bias"}
    assert len({k.rpartition(".")[0] for k in changed}) == 1
    assert model(images(2, (3, 48, 48))).shape == (2, 7)


def test_pretrained_grey_network_answers_as_it_did_to_three_equal_channels(offline_weights):
    name, grey = "torchvision/shufflenet_v2_x0_5", images(2, (1, 48, 48))
    colour_model = build(name, (3, 48, 48), pretrained=True).eval()
    grey_model = build(name, (1, 48, 48), pretrained=True).eval()
    colour_features, grey_features = colour_model.conv1, grey_model.conv1
    expected = colour_features(grey.expand(-1, 3, -1, -1))
    assert torch.allclose(grey_features(grey), expected, atol=1e-5)


@pytest.mark.parametrize("channels", [2, 4, 6])
def test_further_channels_repeat_the_rgb_weights(channels):
    name = "torchvision/shufflenet_v2_x0_5"
    rgb = build(name, (3, 48, 48)).conv1[0].weight
    more = build(name, (channels, 48, 48)).conv1[0].weight
    for channel in range(channels):
        assert torch.allclose(more[:, channel], rgb[:, channel % 3] * 3 / channels)


@pytest.mark.parametrize(
    ("name", "close"),
    [
        ("resnet81", "resnet18"),
        ("mlp", "mlp2"),
        ("resnet50", "torchvision/resnet50, timm/resnet50"),
        ("timm/resnet10", "timm/resnet10t"),
        ("torchvision/vgg11bn", "torchvision/vgg11_bn"),
        ("torchvision/fcn_resnet50", "torchvision/resnet50"),
    ],
)
def test_an_unknown_name_is_answered_with_close_ones(name, close):
    with pytest.raises(ValueError, match=f"unknown network '{name}'.*mlp2.*close: .*{close}"):
        build(name)


def test_a_name_like_no_other_gets_the_list():
    with pytest.raises(ValueError, match=r"cnn4, jocor, jocor-code, mlp2.*'torchvision/NAME'$"):
        build("qqqqqqqq")


@pytest.mark.parametrize(("name", "shape"), [("mlp2", MNIST), ("jocor", CIFAR), ("vgg11", CIFAR)])
def test_pretrained_weights_that_do_not_exist_are_refused(name, shape):
    with pytest.raises(ValueError, match=f"no pretrained weights for '{name}'"):
        build(name, shape, pretrained=True)


@pytest.mark.parametrize(
    ("name", "image_shape", "message"),
    [
        ("cnn4", (1, 15, 28), "cnn4 needs images of at least 16×16 pixels, got"),
        ("jocor", (1, 3, 28), "jocor needs images of at least 4×4 pixels"),
        ("jocor-code", (1, 7, 28), "jocor-code needs images of at least 8×8 pixels"),
        ("torchvision/alexnet", (3, 16, 16), r"alexnet does not take images of shape \(3, 16, 16"),
        ("mlp2", (28, 28), r"\(channels, height, width\), got \(28, 28\)"),
        ("mlp2", (1, 0, 28), r"got \(1, 0, 28\)"),
    ],
)
def test_images_that_do_not_fit_are_refused(name, image_shape, message):
    with pytest.raises(ValueError, match=message):
        build(name, image_shape)


def test_sixteen_pixels_are_enough_for_cnn4():
    assert build("cnn4", (1, 16, 16))(images(2, (1, 16, 16))).shape == (2, 10)


def test_one_class_is_no_classification():
    with pytest.raises(ValueError, match="num_classes must be at least 2, got 1"):
        build("mlp2", MNIST, num_classes=1)
