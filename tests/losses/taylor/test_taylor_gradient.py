"""Value and gradient of the Taylor loss, against Eq. 4 written term by term and autograd."""

from itertools import product

import pytest
import torch
from torch import nn

from losses.reference import eq4_of_logits, one_hot, random_labels, random_logits, random_theta
from optuna_robustloss.losses import MAE_THETA, MSE_THETA, TaylorLoss, taylor_loss

VARIABLES = ["probability", "log"]


def targets_for(soft, seed, num_classes, *shape):
    if soft:
        return random_logits(seed, *shape, num_classes).softmax(-1)
    return random_labels(seed, num_classes, *shape)


def loss_and_gradients(function, logits, theta, upstream):
    logits, theta = logits.clone().requires_grad_(), theta.clone().requires_grad_()
    losses = function(logits, theta)
    gradients = torch.autograd.grad((losses * upstream).sum(), (logits, theta))
    return losses.detach(), *gradients


# --- Equality with Eq. 4 ---


def check_eq4(dtype, num_classes, soft, variable):
    target = targets_for(soft, 1, num_classes, 16)
    logits = (2 * random_logits(0, 16, num_classes)).to(dtype)
    computed_in = torch.float64 if dtype == torch.float64 else torch.float32
    theta = random_theta(2)
    upstream = 1 + random_logits(3, 16).abs().to(computed_in)
    losses, by_logits, by_theta = loss_and_gradients(
        lambda z, t: taylor_loss(z, target, t, reduction="none", variable=variable),
        logits,
        theta,
        upstream,
    )
    expected, slow_by_logits, slow_by_theta = loss_and_gradients(
        lambda z, t: eq4_of_logits(z, target, t, variable), logits.double(), theta, upstream
    )
    assert losses.dtype == computed_in  # half precision goes in, float32 comes out
    assert by_logits.dtype == dtype
    close = 1e-10 if dtype == torch.float64 else 3e-5
    torch.testing.assert_close(losses.double(), expected, rtol=close, atol=close)
    torch.testing.assert_close(by_theta, slow_by_theta, rtol=10 * close, atol=10 * close)
    rounding = max(close, torch.finfo(dtype).eps)
    torch.testing.assert_close(
        by_logits.double(), slow_by_logits, rtol=rounding, atol=rounding / num_classes
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_value_and_gradients_are_those_of_eq4(dtype):
    for num_classes, soft, variable in product((2, 3, 10, 100), (False, True), VARIABLES):
        check_eq4(dtype, num_classes, soft, variable)


@pytest.mark.parametrize("population", [1, 3])
def test_a_population_is_its_candidates_side_by_side(population):
    for shared, soft, variable in product((True, False), (False, True), VARIABLES):
        logits = random_logits(0, population, 6, 5).requires_grad_()
        thetas = random_theta(1, population=population).requires_grad_()
        shape = (6,) if shared else (population, 6)
        target = targets_for(soft, 2, 5, *shape)
        for reduction, reduce in (
            ("none", lambda x: x),
            ("sum", torch.sum),
            ("mean", torch.mean),
        ):
            losses = taylor_loss(logits, target, thetas, reduction=reduction, variable=variable)
            one_by_one = torch.stack(
                [
                    reduce(
                        eq4_of_logits(logits[k], target if shared else target[k], theta, variable)
                    )
                    for k, theta in enumerate(thetas)
                ]
            )
            torch.testing.assert_close(losses, one_by_one)
            of_losses = torch.autograd.grad((losses**2).sum(), (logits, thetas))
            of_each = torch.autograd.grad((one_by_one**2).sum(), (logits, thetas))
            torch.testing.assert_close(of_losses, of_each)


def test_mae_and_mse_are_members():
    """With η = 2 exactly Σ|ŷ − y| and Σ(ŷ − y)²."""
    logits, target = 3 * random_logits(0, 50, 10), random_labels(1, 10, 50)
    p, y = logits.softmax(-1), one_hot(target, 10)
    for theta, expected in (
        (MAE_THETA, nn.functional.l1_loss(p, y, reduction="none")),
        (MSE_THETA, nn.functional.mse_loss(p, y, reduction="none")),
    ):
        theta = torch.tensor(theta, dtype=torch.float64)
        loss = TaylorLoss(theta, 10, eta=2, reduction="none")(logits, target)
        torch.testing.assert_close(loss, expected.sum(-1), rtol=1e-12, atol=1e-12)


def test_binary_cross_entropy_near_the_expansion_point():
    """The fourth-order expansion at (½, ½) is that close to what it expands."""
    theta = torch.tensor([0.5, 0.5, 0, 4, 0, 96, -4, 0, 0, -32, 0, 0], dtype=torch.float64)
    p = torch.tensor([[0.47, 0.53]], dtype=torch.float64)
    y = torch.tensor([[0.52, 0.48]], dtype=torch.float64)
    at_half = torch.full_like(p, 0.5)

    def difference(loss):  # Eq. 4 omits terms without ŷ
        return loss(p) - loss(at_half)

    full = difference(lambda p: -(y * p.log() + (1 - y) * (1 - p).log()).mean())
    taylor = difference(lambda p: taylor_loss(p.log(), y, theta))
    assert taylor.item() == pytest.approx(full.item(), rel=1e-4)


# --- Derivatives ---


@pytest.mark.parametrize("variable", VARIABLES)
@pytest.mark.parametrize("soft", [False, True], ids=["index", "soft"])
@pytest.mark.parametrize("population", [None, 2])
def test_first_and_second_derivatives(population, soft, variable):
    shape = (2, 3) if population is None else (population, 2, 3)
    logits = random_logits(0, *shape).requires_grad_()
    theta = random_theta(1, population).requires_grad_()
    target = targets_for(soft, 2, 3, 2)

    def loss(logits, theta):
        return taylor_loss(logits, target, theta, reduction="sum", variable=variable)

    assert torch.autograd.gradcheck(loss, (logits, theta))
    assert torch.autograd.gradgradcheck(loss, (logits, theta), fast_mode=population is not None)


@pytest.mark.parametrize("variable", VARIABLES)
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("num_classes", [3, 20])
def test_derivatives_by_the_logits_alone(num_classes, reduction, variable):
    """Without a gradient of theta the gradient is another piece of code."""
    logits, theta = random_logits(0, 2, num_classes).requires_grad_(), random_theta(1)
    target = random_labels(2, num_classes, 2)

    def loss(logits):
        return taylor_loss(logits, target, theta, reduction=reduction, variable=variable)

    def slow(logits):
        losses = eq4_of_logits(logits, target, theta, variable)
        return losses.mean() if reduction == "mean" else losses

    assert torch.autograd.gradgradcheck(loss, (logits,))
    expected, upstream = slow(logits), torch.tensor([2.0, -3.0], dtype=torch.float64)
    upstream = upstream if reduction == "none" else upstream[0]
    torch.testing.assert_close(loss(logits), expected)
    for keep in (True, False):  # differentiable, and in place
        (first,) = torch.autograd.grad(loss(logits), logits, upstream, create_graph=keep)
        (again,) = torch.autograd.grad(slow(logits), logits, upstream, create_graph=keep)
        torch.testing.assert_close(first, again)
        assert first.requires_grad is keep


def test_the_gradient_can_be_taken_again():
    """The first backward pass leaves what it kept as it was."""
    logits = random_logits(0, 6, 5).requires_grad_()
    losses = taylor_loss(logits, random_labels(1, 5, 6), random_theta(2), reduction="none")
    first, again = (
        torch.autograd.grad(losses.sum(), logits, retain_graph=True)[0].clone() for _ in range(2)
    )
    torch.testing.assert_close(first, again, rtol=0, atol=0)


def test_soft_targets_have_gradients_too():
    target = targets_for(True, 2, 4, 3).requires_grad_()
    logits, theta = random_logits(0, 3, 4), random_theta(1)
    assert torch.autograd.gradcheck(lambda y: taylor_loss(logits, y, theta), (target,))


@pytest.mark.parametrize("variable", VARIABLES)
def test_vmap_over_theta_and_over_logits(variable):
    logits, target = random_logits(0, 3, 6, 5), random_labels(1, 5, 6)
    thetas = random_theta(2, population=3)

    def loss(logits, theta):
        return taylor_loss(logits, target, theta, variable=variable)

    for in_dims in ((None, 0), (0, None), (0, 0)):
        pairs = [
            (logits if in_dims[0] is None else logits[k], thetas[0 if in_dims[1] is None else k])
            for k in range(3)
        ]
        pairs = [(z[0] if z.ndim == 3 else z, t) for z, t in pairs]
        arguments = (
            logits[0] if in_dims[0] is None else logits,
            thetas[0] if in_dims[1] is None else thetas,
        )
        mapped = torch.func.vmap(loss, in_dims)(*arguments)
        torch.testing.assert_close(mapped, torch.stack([loss(z, t) for z, t in pairs]))
        for argument in (0, 1):
            slope = torch.func.grad(loss, argnums=argument)
            mapped = torch.func.vmap(slope, in_dims)(*arguments)
            torch.testing.assert_close(mapped, torch.stack([slope(z, t) for z, t in pairs]))


def test_second_derivatives_under_func_transforms():
    logits, target, theta = random_logits(0, 4, 3), random_labels(1, 3, 4), random_theta(2)
    hessian = torch.func.jacrev(torch.func.jacrev(lambda z: taylor_loss(z, target, theta)))(logits)
    slow = torch.func.jacrev(torch.func.jacrev(lambda z: eq4_of_logits(z, target, theta).mean()))
    torch.testing.assert_close(hessian, slow(logits))


def test_saturated_logits_give_finite_values_and_gradients():
    for soft, variable in product((False, True), VARIABLES):
        logits = torch.tensor([[1e4, 0.0, -1e4], [-1e4, 0.0, 1e4], [0.0, 0.0, 0.0]])
        logits.requires_grad_()
        target = torch.tensor([0, 0, 1])
        target = one_hot(target, 3).float() if soft else target
        loss = taylor_loss(logits, target, random_theta(0), variable=variable)
        loss.backward()
        assert loss.isfinite()
        assert logits.grad.isfinite().all()
