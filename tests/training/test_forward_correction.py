"""Forward correction: the matrix, the network that it is read off, and what may go wrong."""

import logging
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from optuna_robustloss.losses import ForwardCorrectionLoss
from optuna_robustloss.training import forward_correction
from optuna_robustloss.training.forward_correction import (
    best_on_noisy_labels,
    estimate_transition,
    predict,
    train_forward_corrected,
)
from training.tiny import ADAM, CPU, digits, options, same, trained, weights

pytestmark = pytest.mark.integration  # trains networks


def test_the_matrix_of_a_perfect_network_is_estimated():
    """Outputs are the rows of the true matrix, but for the surest, which are outliers."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.rand(4, 4, generator=generator).double() + 4 * torch.eye(4)
    transition = rows / rows.sum(1, keepdim=True)
    classes = torch.arange(4).repeat(100)
    probabilities = transition[classes]
    probabilities[:8] = torch.eye(4, dtype=torch.double)[classes[:8]]
    found = estimate_transition(probabilities, 0.97)
    torch.testing.assert_close(found, transition)
    torch.testing.assert_close(estimate_transition(probabilities, 1.0), torch.eye(4).double())


def test_rows_are_distributions_even_of_few_images():
    probabilities = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    matrix = estimate_transition(probabilities)
    torch.testing.assert_close(matrix.sum(1), torch.ones(2).double())


@pytest.fixture
def matrices(monkeypatch):
    """The matrices that trainings correct by."""
    seen = []

    class Kept(ForwardCorrectionLoss):
        def __init__(self, transition):
            super().__init__(transition)
            seen.append(transition)

    monkeypatch.setattr(forward_correction, "ForwardCorrectionLoss", Kept)
    return seen


def split(task):
    """The task with nine tenths of its training images, and the last tenth."""
    index = task.train.index
    count = len(index) // 10
    rest = replace(task, train=replace(task.train, index=index[:-count]))
    return rest, replace(task.train, index=index[-count:])


def test_the_matrix_is_that_of_the_epoch_with_the_lowest_loss_on_held_out_noisy_labels(matrices):
    task = digits("digits,mlp2,pair-flip:0.4", train=200, epochs=8, **ADAM | {"lr": 0.01})
    run = train_forward_corrected(task, **options(task))
    rest, held_out = split(task)
    labels = task.train.labels[held_out.index]
    assert len(held_out) == 20
    networks = [trained(rest, nn.CrossEntropyLoss(), epochs=e).model for e in range(1, 9)]
    losses = [
        F.nll_loss(predict(network, held_out, CPU).log(), labels).item() for network in networks
    ]
    best = losses.index(min(losses))
    assert best < 7  # the last epoch has memorised
    expected = estimate_transition(predict(networks[best], task.train, CPU))
    torch.testing.assert_close(matrices, [expected])
    second = trained(task, ForwardCorrectionLoss(expected), evaluate_on=task.test)
    assert same(weights(run), weights(second))


def test_a_first_training_that_diverges_leaves_its_best_epoch(monkeypatch, caplog):
    """It diverges in the third epoch; nothing but a warning says so."""
    task = digits("digits,mlp2,pair-flip:0.4", train=400, epochs=4, **ADAM)
    calls = []

    class Diverging(nn.CrossEntropyLoss):
        def forward(self, logits, labels):
            calls.append(1)
            return super().forward(logits, labels) * (float("nan") if len(calls) > 30 else 1.0)

    monkeypatch.setattr(forward_correction.nn, "CrossEntropyLoss", Diverging)
    with caplog.at_level(logging.WARNING):
        found = best_on_noisy_labels(task, seed=5, epochs=None, scale=1.0, device=CPU)
    monkeypatch.undo()
    rest, _ = split(task)
    own = trained(rest, nn.CrossEntropyLoss(), epochs=2)
    assert same(found.state_dict().values(), weights(own))
    assert "digits/mlp2/pair-flip 40 % diverged: its best epoch before counts" in caplog.text


def test_a_network_that_never_gives_a_label_is_no_error(monkeypatch, matrices, caplog):
    """The matrix has a column of zeros: the identity is mixed in, with a warning."""
    task = digits("digits,mlp2,pair-flip:0.4", **ADAM)
    never = torch.zeros(10)
    never[1] = -1e4

    class Collapsed(nn.Module):
        def forward(self, images):
            return images.flatten(1)[:, :10] + never

    monkeypatch.setattr(
        forward_correction, "best_on_noisy_labels", lambda *_, **__: Collapsed().eval()
    )
    with caplog.at_level(logging.WARNING):
        run = train_forward_corrected(task, **options(task))
    assert run.complete
    (matrix,) = matrices
    torch.testing.assert_close(matrix[:, 1], 0.01 * torch.eye(10).double()[1])
    torch.testing.assert_close(matrix.sum(1), torch.ones(10).double())
    assert "collapsed" in caplog.text


def test_without_any_finite_epoch_the_training_is_not_corrected(caplog):
    task = digits(optimizer="sgd", lr=1e30, momentum=0)
    with caplog.at_level(logging.WARNING):
        assert train_forward_corrected(task, **options(task)).diverged
    assert "without a correction" in caplog.text


def test_a_single_training_image_is_enough():
    task = digits(train=1, epochs=1)
    assert train_forward_corrected(task, **options(task)).complete
