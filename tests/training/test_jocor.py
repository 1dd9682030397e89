"""JoCoR by its authors' code: the loss, the two networks, what is reported."""

import math
from statistics import fmean

import pytest
import torch

from optuna_robustloss.tasks.spec import TaskSpec
from optuna_robustloss.training import loop
from optuna_robustloss.training.jocor import JoCoRLoss, build_twins, forget_rate, train_jocor
from optuna_robustloss.training.networks import initial_model
from optuna_robustloss.training.train import train
from training.tiny import ADAM, Loss, digits, evaluate, options, same, trained, weights

pytestmark = pytest.mark.integration  # trains networks


def slow_jocor(logits, target, remember, co_lambda):
    losses = []
    for pair, label in zip(logits, target, strict=True):
        p, q = (row.softmax(-1) for row in pair)
        supervised = -p[label].log() - q[label].log()
        divergence = (p * (p / q).log()).sum() + (q * (q / p).log()).sum()
        losses.append((1 - co_lambda) * supervised + co_lambda * divergence)
    losses = torch.stack(losses)
    kept = sorted(range(len(losses)), key=lambda i: losses[i].item())
    return losses[kept[: int(remember * len(losses))]].mean()


@pytest.mark.parametrize(
    ("epoch", "remember"), [(0, 1.0), (1, 1 - 0.4 / 9), (3, 1 - 0.4 / 3), (9, 0.6), (30, 0.6)]
)
def test_the_loss_of_both_networks_is_that_of_the_paper(epoch, remember):
    generator = torch.Generator().manual_seed(epoch)
    logits = torch.randn(20, 2, 5, generator=generator, requires_grad=True)
    target = torch.randint(5, (20,), generator=generator)
    loss = JoCoRLoss(0.4, epochs=40)
    loss.progress = epoch / 40
    assert loss.remember_rate == pytest.approx(remember)
    found = loss(logits, target)
    expected = slow_jocor(logits, target, remember, 0.1)
    torch.testing.assert_close(found, expected)
    gradients = [
        torch.autograd.grad(one, logits, retain_graph=True)[0] for one in (found, expected)
    ]
    torch.testing.assert_close(*gradients)
    dropped = (gradients[0] == 0).flatten(1).all(1).sum()
    assert dropped == 20 - int(remember * 20)


@pytest.mark.parametrize("extreme", [1e4, -1e4])
def test_the_loss_is_finite_at_extreme_logits(extreme):
    logits = torch.zeros(2, 2, 3)
    logits[:, 0, 0] = extreme
    logits.requires_grad_()
    loss = JoCoRLoss(0.0, epochs=1)(logits, torch.tensor([0, 1]))
    loss.backward()
    assert math.isfinite(loss.item())
    assert torch.isfinite(logits.grad).all()


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="shares below 1, got 1"):
        JoCoRLoss(1.0, epochs=2)
    with pytest.raises(ValueError, match=r"\(N, 2, C\), got \(4, 3\)"):
        JoCoRLoss(0.1, epochs=2)(torch.zeros(4, 3), torch.zeros(4, dtype=torch.long))


def test_twins_start_differently_and_score_the_mean_of_both():
    task = digits()
    pair = build_twins(task, 3)
    first, second = pair.first.state_dict().values(), pair.second.state_dict().values()
    assert same(first, initial_model(task, 3).state_dict().values())
    assert not same(first, second)
    images = torch.rand(5, 1, 8, 8)
    assert torch.equal(pair(images), torch.stack([pair.first(images), pair.second(images)], 1))
    apart = [evaluate(model, task.test)[0] for model in (pair.first, pair.second)]
    assert apart[0] != apart[1]
    assert evaluate(pair, task.test) == (pytest.approx(fmean(apart)), True)


def test_jocor_trains_both_networks():
    task = digits("digits,mlp2,symmetric:0.4", train=200, epochs=15, **ADAM)
    run = train_jocor(task, co_lambda=0.7, **options(task))
    loss = JoCoRLoss(0.4, 15, co_lambda=0.7)
    more = {"backend": "separate", "network": build_twins}
    (both,) = train(task, [loss], **options(task, **more)).finish()
    assert same(weights(run), both.model.first.state_dict().values())
    assert run.curve[-1].accuracy == both.curve[-1].accuracy > 0.5
    start = build_twins(task, 5)
    assert not same(weights(run), start.first.state_dict().values())
    second = both.model.second.state_dict().values()
    assert not same(second, start.second.state_dict().values())
    assert loss.progress == pytest.approx(1 - 1 / 105)


def test_the_reported_accuracy_is_the_mean_over_the_last_epochs():
    """The last 5 %: two of 40 epochs. What was asked for besides stays as it is."""
    task = digits(train=64, epochs=40, **ADAM)
    plain = options(task, evaluate_also_on=[task.validation])
    run = train_jocor(task, **plain | {"evaluate_at": [8, 76]})
    pair = {"backend": "separate", "network": build_twins, "evaluate_at": [8, 76, 78]}
    (both,) = train(task, [JoCoRLoss(0.0, 40)], **plain | pair).finish()
    assert [e.step for e in run.curve] == [8, 76, 80]
    assert run.curve[:2] == both.curve[:2]
    ends = both.curve[2:]
    assert [e.step for e in ends] == [78, 80]
    assert run.curve[-1].accuracy == pytest.approx(fmean(e.accuracy for e in ends))
    assert run.curve[-1].also == (pytest.approx(fmean(e.also[0] for e in ends)),)


def test_the_forget_rate_is_that_of_the_authors():
    for noise, expected in {
        "symmetric:0.6": 0.6,
        "pair-flip:0.4": 0.4,
        "asymmetric:0.4": 0.2,
        "none": 0.0,
    }.items():
        task = digits(f"digits,mlp2,{noise}") if noise[0] != "a" else None
        if task is None:  # the digits have no class map
            spec = TaskSpec.parse(f"mnist,mlp2,{noise}")
            task = type("Task", (), {"spec": spec, "noise": None})
        assert forget_rate(task) == expected


def test_adams_beta1_falls_when_the_learning_rate_begins_to(monkeypatch):
    built, betas = [], []
    build = loop.build_optimizer
    monkeypatch.setattr(loop, "build_optimizer", lambda *a: built.append(build(*a)) or built[-1])
    recipe = ADAM | {"schedule": "linear", "decay_start": 0.5, "decayed_beta1": 0.1}
    loss = Loss(
        lambda z, y: (
            betas.append(built[0].param_groups[0]["betas"])
            or torch.nn.functional.cross_entropy(z, y)
        )
    )
    trained(digits(**recipe), loss)
    assert betas == [(0.9, 0.999)] * 6 + [(0.1, 0.999)] * 6


def test_without_noise_jocor_keeps_every_image():
    loss = JoCoRLoss(0.0, epochs=20)
    loss.progress = 0.9
    assert loss.remember_rate == 1
