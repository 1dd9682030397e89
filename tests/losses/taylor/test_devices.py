"""The Taylor loss under autocast, ``torch.compile`` and on CUDA."""

import functools

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from losses.reference import random_labels, random_logits, random_theta
from losses.taylor.test_taylor_gradient import VARIABLES, loss_and_gradients, targets_for
from optuna_robustloss.losses import MAE_THETA, TaylorLoss, taylor_loss

needs_cuda = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device: nothing to compare with the CPU"
)


@pytest.mark.parametrize("soft", [False, True], ids=["index", "soft"])
def test_autocast_computes_the_loss_in_float32(soft):
    torch.manual_seed(0)
    layer, inputs = nn.Linear(8, 5), torch.randn(16, 8)
    target = targets_for(soft, 1, 5, 16)
    criterion = TaylorLoss(random_theta(0).tolist(), 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = layer(inputs)
        logits.retain_grad()
        loss = criterion(logits, target)
        direct = taylor_loss(logits, target, random_theta(0))
    assert (logits.dtype, loss.dtype, direct.dtype) == (torch.bfloat16, *[torch.float32] * 2)
    loss.backward()
    outside = logits.detach().float().requires_grad_()
    expected = criterion(outside, target)
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(direct, taylor_loss(outside, target, random_theta(0)))
    torch.testing.assert_close(logits.grad, outside.grad.bfloat16())
    assert layer.weight.grad.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("soft", [False, True], ids=["index", "soft"])
def test_compiled_equals_eager_for_one_theta_after_another(soft):
    """θ is data, not a constant: one graph, compiled once, serves every loss of the family."""
    torch.compiler.reset()
    counters.clear()
    target = targets_for(soft, 1, 5, 16)
    target = target.float() if soft else target

    @functools.partial(torch.compile, fullgraph=True)
    def compiled(criterion, logits):
        return criterion(logits, target)

    def run(loss, logits):
        logits = logits.clone().requires_grad_()
        value = loss(logits)
        value.backward()
        return value.detach(), logits.grad

    for seed in range(3):
        criterion, logits = TaylorLoss(random_theta(seed).tolist(), 5), random_logits(seed, 16, 5)
        expected = run(lambda z, loss=criterion: loss(z, target), logits.float())
        value = run(lambda z, loss=criterion: compiled(loss, z), logits.float())
        torch.testing.assert_close(value, expected)
    assert counters["stats"]["unique_graphs"] == 1


@needs_cuda
@pytest.mark.parametrize("variable", VARIABLES)
@pytest.mark.parametrize("soft", [False, True], ids=["index", "soft"])
def test_cuda_equals_cpu(soft, variable):
    logits, target, theta = random_logits(0, 64, 10), targets_for(soft, 1, 10, 64), random_theta(2)

    def on(device):
        upstream = torch.ones(64, dtype=torch.float64, device=device)
        y = target.to(device)
        return loss_and_gradients(
            lambda z, t: taylor_loss(z, y, t, reduction="none", variable=variable),
            logits.to(device),
            theta.to(device),
            upstream,
        )

    for there, here in zip(on("cuda"), on("cpu"), strict=True):
        torch.testing.assert_close(there.cpu(), here)


@needs_cuda
def test_the_module_moves_to_cuda_and_runs_under_autocast():
    criterion = TaylorLoss(MAE_THETA, 10, weight=torch.rand(10))
    logits, target = random_logits(0, 64, 10).float(), random_labels(1, 10, 64)
    expected = criterion(logits, target)
    criterion.cuda()
    torch.testing.assert_close(criterion(logits.cuda(), target.cuda()).cpu(), expected)
    with torch.autocast("cuda", dtype=torch.float16):
        assert criterion(logits.cuda().half(), target.cuda()).dtype == torch.float32
