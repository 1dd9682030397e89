import pytest
import torch
from torch import nn

from optuna_robustloss.report.figures.features import feature_maps, penultimate
from optuna_robustloss.tasks.models import build_model


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Dropout(0.5), nn.Linear(3, 2))


def test_penultimate_features_are_the_input_of_the_last_layer(network):
    images = torch.randn(300, 1, 2, 2)
    features = penultimate(network, images)
    assert features.shape == (300, 3)
    torch.testing.assert_close(features, network[1](images.flatten(1)))  # no dropout


def test_batches_give_the_same_and_the_network_stays_as_it_was(network):
    images = torch.randn(10, 1, 2, 2)
    network.train()
    torch.testing.assert_close(penultimate(network, images.split(3)), penultimate(network, images))
    assert network.training
    assert not network[-1]._forward_pre_hooks


@pytest.mark.parametrize(("name", "width"), [("mlp2", 256), ("cnn4", 1024), ("jocor", 196)])
def test_networks_of_the_paper_have_features(name, width):
    model = build_model(name, num_classes=10, image_shape=(1, 28, 28))
    assert penultimate(model, torch.randn(2, 1, 28, 28)).shape == (2, width)


def test_a_network_without_linear_layer_is_an_error():
    with pytest.raises(ValueError, match=r"Conv2d has no nn\.Linear"):
        penultimate(nn.Conv2d(1, 1, 1), torch.randn(1, 1, 2, 2))


def test_maps_have_a_panel_for_each_method_and_separate_what_is_separate():
    labels = torch.arange(40) % 2
    apart = torch.randn(40, 5, generator=torch.Generator().manual_seed(0)) + 50 * labels[:, None]
    figure = feature_maps({"ce": apart, "gce": apart}, labels)
    assert [a.text for a in figure.layout.annotations] == ["CE", "GCE"]
    cat, dog, again, _ = figure.data
    assert (cat.name, dog.name, len(cat.x)) == ("0", "1", 20)
    assert list(cat.x) == list(again.x)  # same features, same map
    centres = torch.tensor([[sum(t.x) / 20, sum(t.y) / 20] for t in (cat, dog)])
    spread = torch.tensor([list(cat.x), list(cat.y)]).std(1).max()
    assert (centres[0] - centres[1]).norm() > 2 * spread


def test_features_and_labels_must_be_of_the_same_images():
    with pytest.raises(ValueError, match="5 images and 4 labels"):
        feature_maps({"ce": torch.zeros(5, 2)}, torch.zeros(4))
