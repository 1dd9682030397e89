import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from optuna_robustloss.seeds import derive_seed
from optuna_robustloss.tasks.models import build_model
from optuna_robustloss.training import loop
from optuna_robustloss.training.train import steps_per_epoch
from training.tiny import CPU, Loss, digits, evaluate, same, trained, weights

pytestmark = pytest.mark.integration  # trains networks


class Recorder:
    """Images of a real source that keep every batch they gave."""

    def __init__(self, images):
        self.images, self.shape, self.seen = images, images.shape, []

    def batches(self, order, batch_size, **options):
        for index, batch in self.images.batches(order, batch_size, **options):
            self.seen.append((index.clone(), batch.clone()))
            yield index, batch


def recorded(task):
    return replace(task, train=replace(task.train, images=Recorder(task.train.images)))


# What the seed decides


def test_the_same_seed_gives_the_same_curve_and_weights_to_the_last_bit():
    task = digits(augment=True)
    first, again, other = (trained(task, seed=s, evaluate_at=range(12)) for s in (5, 5, 6))
    assert first.curve == again.curve
    assert same(weights(first), weights(again))
    assert not same(weights(first), weights(other))


@pytest.mark.parametrize("augment", [False, True])
def test_losses_with_the_same_seed_see_the_same_weights_and_batches(augment):
    task = digits(augment=augment)
    tasks = [recorded(task), recorded(task)]
    losses = [Loss(), Loss(lambda z, y: 3 * F.mse_loss(z.softmax(-1), F.one_hot(y, 10).float()))]
    runs = [trained(t, c) for t, c in zip(tasks, losses, strict=True)]
    batches = [t.train.images.seen for t in tasks]
    assert len(batches[0]) == 12
    assert all(same(a, b) for a, b in zip(*batches, strict=True))
    assert torch.equal(losses[0].logits[0], losses[1].logits[0])
    assert not same(weights(runs[0]), weights(runs[1]))


def test_evaluating_more_often_changes_nothing():
    task = digits()
    assert same(weights(trained(task)), weights(trained(task, evaluate_at=range(12))))


def test_global_random_numbers_neither_matter_nor_change():
    task = digits(augment=True)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = trained(task)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert same(weights(trained(task)), weights(first))


def test_small_numbers_are_flushed_to_zero_during_training_only():
    inside = []

    def loss(logits, labels):
        inside.append(sys.float_info.min / 2)
        return F.cross_entropy(logits, labels)

    trained(digits(), Loss(loss))
    assert set(inside) == {0.0}
    assert sys.float_info.min / 2 > 0.0


# The steps


def test_training_is_that_of_a_plain_loop():
    task = digits(lr=0.05)
    torch.manual_seed(derive_seed(5, "init"))
    model = build_model("mlp2", num_classes=10, image_shape=(1, 8, 8))
    velocity = [torch.zeros_like(p) for p in model.parameters()]
    order = torch.Generator().manual_seed(derive_seed(5, "order"))
    for _ in range(3):
        shuffled = task.train.index[torch.randperm(100, generator=order)]
        for start in range(0, 100, 32):
            index = shuffled[start : start + 32]
            ((_, images),) = task.train.images.batches(index, 32, device=CPU)
            loss = F.cross_entropy(model(images), task.train.labels[index])
            gradients = torch.autograd.grad(loss, [*model.parameters()])
            with torch.no_grad():
                for p, v, g in zip(model.parameters(), velocity, gradients, strict=True):
                    v.copy_(0.9 * v + g)
                    p.sub_(0.05 * v)
    for ours, plain in zip(weights(trained(task)), model.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, plain)


def test_each_epoch_trains_on_each_image_once_and_in_a_new_order():
    task = recorded(digits(train=70))
    trained(task)
    assert steps_per_epoch(task) == 3
    assert [len(index) for index, _ in task.train.images.seen] == [32, 32, 6] * 3
    epochs = [torch.cat([i for i, _ in task.train.images.seen[e : e + 3]]) for e in (0, 3, 6)]
    assert all(sorted(e.tolist()) == sorted(task.train.index.tolist()) for e in epochs)
    assert not torch.equal(epochs[0], epochs[1])


def test_a_network_with_batch_norm_trains_on_a_last_batch_of_one_image(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (160, 4, 4), dtype=np.uint8)
    file = tmp_path / "tiny.npz"  # 4×4 pixels leave maps of one pixel
    np.savez(
        file, x_train=pixels, y_train=np.arange(160) % 2, x_test=pixels, y_test=pixels[:, 0, 0] % 2
    )
    loss = Loss()
    run = trained(digits(f"{file},jocor", train=9, batch_size=8), loss)
    assert [len(labels) for labels in loss.labels] == [8, 1] * 3
    assert all(bool(w.isfinite().all()) for w in weights(run))
    assert all(module.training for module in run.model.modules())
    alone = digits(f"{file},jocor", train=1)
    assert not same(weights(trained(alone, epochs=1)), weights(trained(alone, epochs=2)))


@pytest.mark.parametrize("augment", [False, True])
def test_images_are_augmented_by_the_recipe_and_never_in_evaluations(augment):
    task = recorded(digits(train=32, augment=augment))
    watch = replace(task.train, images=Recorder(task.train.images.images))
    trained(task, evaluate_on=watch, epochs=1)
    for part, plain in ((task.train, not augment), (watch, True)):
        ((index, images),) = part.images.seen
        ((_, expected),) = part.images.images.batches(index, 32, device=CPU)
        assert torch.equal(images, expected) is plain


def test_the_learning_rate_follows_the_schedule(monkeypatch):
    built = []
    build = loop.build_optimizer
    monkeypatch.setattr(loop, "build_optimizer", lambda *a: built.append(build(*a)) or built[-1])
    rates = []

    def loss(logits, labels):
        rates.append(built[0].param_groups[0]["lr"])
        return F.cross_entropy(logits, labels)

    trained(
        digits(lr=0.1, schedule="step", milestones=[0.5, 0.75], factors=[0.1, 0.01]), Loss(loss)
    )
    assert rates == pytest.approx([0.1] * 6 + [0.01] * 3 + [0.001] * 3)


def test_the_progress_of_a_loss_goes_from_0_to_below_1():
    seen = []
    loss = Loss(lambda z, y: seen.append(loss.progress) or F.cross_entropy(z, y))
    loss.progress = None
    trained(digits(), loss)
    assert seen == [step / 12 for step in range(12)]


def test_the_number_of_epochs_may_differ_from_the_recipes():
    task = digits()
    assert trained(task, epochs=2).curve[-1].step == 8
    assert same(weights(trained(task, epochs=3)), weights(trained(task)))


# What is measured


def test_the_last_point_is_the_accuracy_of_the_trained_network():
    task = digits(train=800)
    run = trained(task)
    assert run.curve[-1].accuracy == evaluate(run.model, task.validation)[0] > 0.5


def test_evaluation_counts_the_right_answers():
    task = digits(train=1147)
    model = trained(task, epochs=1).model
    correct = 0
    for index, image in task.train.images.batches(task.train.index, 1, device=CPU):
        correct += int(model(image).argmax()) == int(task.train.labels[index])
    assert 300 < correct < 1100
    assert evaluate(model, task.train) == (correct / 1147, True)


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_leaves_the_network_as_it_was(training):
    model = build_model("jocor", num_classes=10, image_shape=(1, 8, 8)).train(training)
    before = [tensor.clone() for tensor in model.state_dict().values()]
    evaluate(model, digits().validation)
    assert same(before, model.state_dict().values())
    assert all(module.training is training for module in model.modules())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_evaluation_reports_logits_that_are_not_finite(bad):
    task = digits()
    last = task.validation.index[-1]
    ((_, image),) = task.validation.images.batches(last[None], 1, device=CPU)

    class BadForOneImage(nn.Module):
        def forward(self, images):
            logits = images.flatten(1)[:, :10].clone()
            logits[(images == image).all((1, 2, 3)), 3] = bad
            return logits

    assert not evaluate(BadForOneImage(), task.validation)[1]
    others = replace(task.validation, index=task.validation.index[:-1])
    assert evaluate(BadForOneImage(), others)[1]


def test_evaluating_on_no_images_is_an_error():
    task = digits()
    nothing = replace(task.validation, index=task.validation.index[:0])
    with pytest.raises(ValueError, match="no images to evaluate on: set the size of the valid"):
        trained(task, evaluate_on=nothing)
