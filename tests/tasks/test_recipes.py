import copy
import math

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from optuna_robustloss.tasks.recipes import Recipe, build_optimizer, recipe_for


def recipe(**fields):
    return Recipe(**({"optimizer": "sgd", "lr": 0.1, "batch_size": 8, "epochs": 4} | fields))


def weight(value=2.0):
    return nn.Parameter(torch.tensor([value], dtype=torch.float64))


def quadratic_step(optimizer, parameter):
    optimizer.zero_grad()
    (parameter**2 / 2).sum().backward()  # the gradient is the weight itself
    optimizer.step()
    return parameter.item()


def lookahead_reference(inner_step, start, k, alpha, steps):
    """Zhang et al. 2019, Algorithm 1: φ ← φ + α(θ − φ), θ ← φ after every k inner steps."""
    slow = fast = start
    path = []
    for step in range(1, steps + 1):
        fast = inner_step(fast)
        if step % k == 0:
            slow = slow + alpha * (fast - slow)
            fast = slow
        path.append(fast)
    return path


# The paper's settings


@pytest.mark.parametrize("name", ["mlp2", "mlp3", "cnn4"])
def test_small_networks_are_trained_as_in_section_3(name):
    found = recipe_for(name, "mnist")
    assert (found.optimizer, found.lr, found.momentum) == ("sgd", 0.01, 0.9)
    assert found.batch_size == 128
    assert found.constant_lr
    assert found.lookahead_k is None
    assert not found.augment


@pytest.mark.parametrize("name", ["jocor", "jocor-code"])
def test_jocor_decays_linearly_from_epoch_80_to_zero(name):
    found = recipe_for(name, "cifar10")
    assert (found.optimizer, found.epochs, found.batch_size) == ("adam", 200, 128)
    assert found.lr_at(0) == found.lr_at(80 / 200) == 1e-3
    assert found.lr_at(140 / 200) == pytest.approx(5e-4)
    assert found.lr_at(199 / 200) == pytest.approx(1e-3 / 120)
    assert found.decayed_beta1 == 0.1
    later = recipe_for(name, "cifar100")
    assert later.lr_at(100 / 200) == 1e-3
    assert later.lr_at(150 / 200) == pytest.approx(5e-4)


def test_the_decay_of_beta1_belongs_to_adam_and_a_decaying_rate():
    jocor = recipe_for("jocor", "cifar10")
    for changes in ({"schedule": "constant"}, {"optimizer": "sgd", "schedule": "cosine"}):
        assert jocor.changed(changes).decayed_beta1 is None
    for changes in ({"schedule": "constant"}, {"optimizer": "sgd"}):
        with pytest.raises(ValueError, match="decayed_beta1 belongs to 'adam'"):
            jocor.changed(changes | {"decayed_beta1": 0.1})


@pytest.mark.parametrize(
    "name", ["vgg11", "resnet18", "timm/resnet10t", "torchvision/mobilenet_v3_small"]
)
def test_large_networks_follow_the_cifar_protocol_of_lookahead(name):
    found = recipe_for(name, "cifar10")
    assert (found.optimizer, found.momentum, found.batch_size) == ("sgd", 0.9, 128)
    assert found.nesterov
    assert (found.lookahead_k, found.lookahead_alpha) == (5, 0.8)
    assert found.augment
    assert not found.constant_lr
    rates = [found.lr_at(epoch / found.epochs) for epoch in range(found.epochs)]
    assert rates == pytest.approx([0.1] * 60 + [0.02] * 60 + [0.004] * 40 + [0.0008] * 40)


def test_clothing1m_has_three_rates_for_five_epochs_each():
    found = recipe_for("resnet18", "clothing1m")
    assert (found.optimizer, found.batch_size, found.epochs) == ("adam", 64, 15)
    rates = [found.lr_at(epoch / 15) for epoch in range(15)]
    assert rates == pytest.approx([8e-4] * 5 + [5e-4] * 5 + [5e-5] * 5)


def test_an_unknown_network_is_the_models_error():
    for dataset in ("cifar10", "clothing1m"):
        with pytest.raises(ValueError, match=r"unknown network 'resnet81'.*resnet18"):
            recipe_for("resnet81", dataset)


# The schedule


def test_the_step_falls_on_the_first_batch_of_its_epoch():
    found = recipe_for("resnet18", "cifar10")
    batches = 391
    for epoch, rate in [(60, 0.02), (120, 0.004), (160, 0.0008)]:
        first = epoch * batches
        assert found.lr_at(first / (200 * batches)) == pytest.approx(rate)
        assert found.lr_at((first - 1) / (200 * batches)) == pytest.approx(rate * 5)


def test_constant_cosine_and_linear_rates():
    assert {recipe().lr_at(p) for p in (0, 0.3, 0.999)} == {0.1}
    cosine = recipe(schedule="cosine")
    for p in (0, 0.25, 0.5, 0.9):
        assert cosine.lr_at(p) == pytest.approx(0.05 * (1 + math.cos(math.pi * p)))
    late = recipe(schedule="cosine", decay_start=0.5)
    assert late.lr_at(0.4) == 0.1
    assert late.lr_at(0.75) == pytest.approx(0.05)
    assert recipe(schedule="linear").lr_at(0.25) == pytest.approx(0.075)
    assert [recipe(schedule=s).constant_lr for s in ("constant", "cosine")] == [True, False]


def test_progress_outside_the_run_is_refused():
    for progress in (-0.01, 1.0, float("nan")):
        with pytest.raises(ValueError, match=r"progress must be in \[0, 1\), got"):
            recipe().lr_at(progress)


# Contradictions


def test_contradictory_recipes_are_refused():
    for fields, message in [
        ({"learning_rate": 0.1}, "learning_rate"),
        ({"optimizer": "lion"}, "'sgd', 'adam' or 'adamw'"),
        ({"lr": 0}, "greater than or equal to 0.00"),
        ({"lr": float("inf")}, "finite"),
        ({"batch_size": 0}, "greater than 0"),
        ({"epochs": 0}, "greater than 0"),
        ({"epochs": 1.5}, "integer"),
        ({"momentum": 1.0}, "less than 1"),
        ({"weight_decay": -1e-4}, "greater than or equal to 0"),
        ({"optimizer": "adam", "momentum": 0.9}, "momentum=0.9.* with 'adam'"),
        ({"optimizer": "adamw", "nesterov": True}, "nesterov=True with 'adamw'"),
        ({"nesterov": True}, "needs a momentum above 0"),
        ({"lookahead_k": 5}, "come together, got 5 and None"),
        ({"lookahead_alpha": 0.5}, "come together, got None and 0.5"),
        ({"lookahead_k": 0, "lookahead_alpha": 0.5}, "greater than or equal to 1"),
        ({"lookahead_k": 5, "lookahead_alpha": 1.5}, "less than or equal to 1"),
        ({"schedule": "step"}, r"needs milestones.*got \(\)"),
        ({"schedule": "step", "milestones": [60], "factors": [0.2]}, r"in \(0, 1\), got \(60"),
        ({"schedule": "step", "milestones": [0.6, 0.3], "factors": [0.2, 0.1]}, "ascending"),
        ({"schedule": "step", "milestones": [0.3, 0.6], "factors": [0.2]}, "one factor above 0"),
        ({"schedule": "step", "milestones": [0.3], "factors": [0.0]}, "greater than or equal"),
        ({"milestones": [0.3], "factors": [0.2]}, "belong to schedule 'step'.*'constant'"),
        ({"schedule": "cosine", "factors": [0.2]}, "belong to schedule 'step'.*'cosine'"),
        ({"decay_start": 0.5}, "decay_start belongs to .*got 0.5 with 'constant'"),
        ({"schedule": "linear", "decay_start": 1.0}, "less than 1"),
    ]:
        with pytest.raises(ValidationError, match=message):
            recipe(**fields)


def test_a_recipe_is_frozen_and_survives_json():
    found = recipe_for("resnet18", "clothing1m")
    assert Recipe.model_validate_json(found.model_dump_json()) == found
    with pytest.raises(ValidationError, match="frozen"):
        found.lr = 1.0


def test_numbers_that_float32_does_not_hold_are_refused():
    for field in ("lr", "weight_decay", "clip_grad_norm"):
        for value in (1e40, float("nan"), float("inf"), -1.0, "1e40"):
            with pytest.raises(ValidationError, match=field):
                recipe(**{field: value})
    for fields in (
        {"lr": 1e-60},
        {"clip_grad_norm": 1e-60},
        {"lookahead_k": 5, "lookahead_alpha": 1e-60},
        {"lookahead_alpha": 0.5, "lookahead_k": 10**30},
        {"schedule": "step", "milestones": [0.5], "factors": [float("nan")]},
        {"schedule": "step", "milestones": [0.5], "factors": [1e40]},
        {"epochs": 10**6},
        {"batch_size": 2**21},
    ):
        with pytest.raises(ValidationError, match=next(reversed(fields))):
            recipe(**fields)


# The optimiser


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"momentum": 0.9, "nesterov": True, "weight_decay": 1e-3}, torch.optim.SGD),
        ({"optimizer": "adam", "weight_decay": 1e-3}, torch.optim.Adam),
        ({"optimizer": "adamw", "weight_decay": 1e-3}, torch.optim.AdamW),
    ],
)
def test_the_optimizer_gets_the_settings_of_the_recipe(fields, kind):
    optimizer = build_optimizer(recipe(**fields), [weight()])
    assert type(optimizer) is kind
    (group,) = optimizer.param_groups
    assert (group["lr"], group["weight_decay"]) == (0.1, 1e-3)
    if kind is torch.optim.SGD:
        assert (group["momentum"], group["nesterov"]) == (0.9, True)


def test_no_parameters_is_an_error():
    with pytest.raises(ValueError, match="empty parameter list"):
        build_optimizer(recipe(), iter(()))


@pytest.mark.parametrize(("k", "alpha"), [(5, 0.8), (3, 0.5), (1, 0.5), (2, 1.0)])
def test_lookahead_interpolates_from_the_first_synchronisation_on(k, alpha):
    parameter = weight()
    optimizer = build_optimizer(recipe(lookahead_k=k, lookahead_alpha=alpha), [parameter])
    found = [quadratic_step(optimizer, parameter) for _ in range(4 * k)]
    expected = lookahead_reference(lambda w: w - 0.1 * w, 2.0, k, alpha, 4 * k)
    assert found == pytest.approx(expected, rel=1e-12)


def test_lookahead_around_adam_interpolates_too():
    class AdamByHand:
        def __init__(self):
            self.m = self.v = self.t = 0.0

        def __call__(self, w):
            self.t += 1
            self.m = 0.9 * self.m + 0.1 * w
            self.v = 0.999 * self.v + 0.001 * w * w
            m, v = self.m / (1 - 0.9**self.t), self.v / (1 - 0.999**self.t)
            return w - 0.1 * m / (math.sqrt(v) + 1e-8)

    parameter = weight()
    spec = recipe(optimizer="adam", lookahead_k=3, lookahead_alpha=0.5)
    optimizer = build_optimizer(spec, [parameter])
    found = [quadratic_step(optimizer, parameter) for _ in range(9)]
    assert found == pytest.approx(lookahead_reference(AdamByHand(), 2.0, 3, 0.5, 9), rel=1e-6)


@pytest.mark.parametrize("optimizer_name", ["sgd", "adam"])
def test_a_parameter_without_a_gradient_is_left_alone_and_may_get_one_later(optimizer_name):
    used, idle = weight(), weight(5.0)
    spec = recipe(optimizer=optimizer_name, lookahead_k=2, lookahead_alpha=0.5)
    optimizer = build_optimizer(spec, [used, idle])
    for _ in range(4):
        quadratic_step(optimizer, used)
    assert idle.item() == 5.0
    for _ in range(4):
        quadratic_step(optimizer, idle)
    assert 0 < idle.item() < 5.0


def test_the_learning_rate_of_the_outside_reaches_the_inner_optimizer():
    parameter = weight()
    optimizer = build_optimizer(recipe(lookahead_k=5, lookahead_alpha=0.8), [parameter])
    optimizer.param_groups[0]["lr"] = 0.5
    assert quadratic_step(optimizer, parameter) == pytest.approx(1.0)


@pytest.mark.parametrize("after", [0, 1, 3, 5])
def test_a_lookahead_run_resumed_from_its_state_goes_on_as_before(after):
    spec = recipe(momentum=0.9, lookahead_k=3, lookahead_alpha=0.5)
    first = weight()
    optimizer = build_optimizer(spec, [first])
    for _ in range(after):
        quadratic_step(optimizer, first)
    second = nn.Parameter(first.detach().clone())
    resumed = build_optimizer(spec, [second])
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(7):
        assert quadratic_step(resumed, second) == quadratic_step(optimizer, first)
