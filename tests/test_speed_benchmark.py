"""The speed benchmark runs, and compares like with like; no timing is asserted here."""

import pytest
import torch
from torch import nn

from benchmarks import plain, speed_growth, speed_loss, speed_suite
from optuna_robustloss.tasks.models import build_model

pytestmark = pytest.mark.integration  # trains networks


def images(count):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 10
    pixels = torch.randint(0, 40, (count, 1, 28, 28), generator=generator, dtype=torch.uint8)
    for image, label in zip(pixels, labels.tolist(), strict=True):
        image[:, 2 * label : 2 * label + 4, :] += 200
    return pixels, labels


def test_the_plain_loop_minimises_the_same_loss():
    logits, labels = torch.randn(32, 10), torch.randint(10, (32,))
    for loss in speed_suite.losses(6):
        gradients = []
        for criterion in (loss, speed_suite.as_printed(loss)):
            leaf = logits.clone().requires_grad_()
            criterion(leaf, labels).backward()
            gradients.append(leaf.grad)
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", ["mlp2", "mlp3", "cnn4"])
def test_the_plain_loop_trains_the_same_networks(name):
    ours = build_model(name, num_classes=10, image_shape=(1, 28, 28))
    theirs = plain.NETWORKS[name]()
    shapes = [[tuple(p.shape) for p in network.parameters()] for network in (ours, theirs)]
    assert shapes[0] == shapes[1]
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    batch = torch.randn(3, 1, 28, 28)
    torch.testing.assert_close(ours(batch), theirs(batch))


def test_the_plain_loop_learns():
    pixels, labels = images(300)
    torch.manual_seed(0)
    train = plain.loader(pixels, labels, torch.arange(200), train=True)
    validation = plain.loader(pixels, labels, torch.arange(200, 300), train=False)
    accuracy = plain.train(plain.mlp(1), nn.CrossEntropyLoss(), train, validation, epochs=5)
    assert accuracy > 0.9


@pytest.mark.slow
def test_the_parts_run():
    (peak, *steps) = speed_suite.peak_rows(2)
    assert peak.share.median == 1
    assert all(0 < row.share.median < 1.5 and row.rate.median > 0 for row in steps)
    growth = speed_growth.growth_rows(True, 2)
    assert {row.network for row in growth} == {"mlp2", "mlp3", "cnn4"}
    rows = speed_growth.estimates(growth)
    assert all(row.core_hours > 0 for row in rows)
    for table in (speed_suite.peak_table([peak, *steps]), speed_growth.growth_table(growth)):
        assert table.row_count > 1
    assert speed_growth.estimate_table(rows).row_count == 4


@pytest.mark.slow
def test_the_loss_part_runs():
    assert list(speed_loss.rows(True))


def test_a_generation_with_and_without_stopping(monkeypatch, tmp_path):
    text = """
name: small
datasets: [digits]
architectures: [mlp2]
noise: symmetric:0.4
recipe: {epochs: 4, batch_size: 32}
train: 100
validation: 100
popsize: 6
generations: 2
stop_at_chance_after: null
prune_at: [0.5]
"""
    (tmp_path / "small.yaml").write_text(text)
    monkeypatch.setattr(speed_growth, "STUDIES", tmp_path)
    rows = list(speed_growth.generation_rows(["small"], None, 2))
    kinds = [(row.generation, row.stopping) for row in rows]
    assert kinds == [(0, False), (1, False), (0, True), (1, True)]
    assert [r.complete + r.pruned for r in rows] == [6] * 4
    assert all(r.pruned == 0 for r in rows[:2])
    assert all(r.pruned > 0 for r in rows[2:])
