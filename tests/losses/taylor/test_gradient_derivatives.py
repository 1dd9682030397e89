"""Gradients of a population's losses as written down, against autograd."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from losses.reference import eq4_of_logits, random_labels, random_logits, random_theta, thetas
from optuna_robustloss.losses import TaylorLoss, taylor_loss
from optuna_robustloss.losses.taylor.gradient import TaylorGradient
from optuna_robustloss.losses.taylor.polynomial import expand, hard_polynomials

VARIABLES = ["probability", "log"]

needs_cuda = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device: nothing to compare with the CPU"
)


def gradient_of(theta, variable="probability", alpha=None):
    p0, label_delta = hard_polynomials(expand(theta))
    return TaylorGradient(p0, label_delta, log=variable == "log", cross_entropy_weight=alpha)


def by_autograd(loss, logits):
    logits = logits.clone().requires_grad_()
    return torch.autograd.grad(loss(logits), logits)[0]


def case(population=3, samples=7, classes=5, variable="probability", dtype=torch.float64):
    gradient = gradient_of(random_theta(1, population).to(dtype), variable)
    logits = 2 * random_logits(0, population, samples, classes).to(dtype)
    return gradient, logits, random_labels(2, classes, samples)


@settings(deadline=None, max_examples=60)
@given(
    theta=st.lists(thetas, min_size=1, max_size=4),
    samples=st.integers(1, 9),
    classes=st.sampled_from([2, 3, 10, 15, 16, 17, 40]),
    variable=st.sampled_from(VARIABLES),
    seed=st.integers(0, 1000),
    spread=st.sampled_from([0.1, 3.0, 30.0]),
)
def test_equals_autograd_of_taylor_loss_and_of_eq4(theta, samples, classes, variable, seed, spread):
    theta = torch.tensor(theta, dtype=torch.float64)
    logits = spread * random_logits(seed, len(theta), samples, classes)
    target = random_labels(seed, classes, samples)
    written = gradient_of(theta, variable)(logits, target)
    fast = by_autograd(lambda z: taylor_loss(z, target, theta, variable=variable).sum(), logits)
    torch.testing.assert_close(written, fast, rtol=1e-10, atol=1e-10)
    for k, row in enumerate(theta):
        slow = by_autograd(
            lambda z, row=row: eq4_of_logits(z, target, row, variable).mean(), logits[k]
        )
        torch.testing.assert_close(written[k], slow, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("variable", VARIABLES)
@pytest.mark.parametrize("classes", [10, 100])
def test_equals_autograd_of_the_modules(classes, variable):
    """Normalised by Eq. 5 and with another weight of cross-entropy for each candidate."""
    alphas = [0.0, 0.3, 2.0]
    modules = [
        TaylorLoss(theta, classes, cross_entropy_weight=alpha, variable=variable)
        for theta, alpha in zip(random_theta(1, 3), alphas, strict=True)
    ]
    gradient = TaylorGradient(
        torch.stack([m.p0 for m in modules]),
        torch.stack([m.label_delta for m in modules]),
        log=variable == "log",
        cross_entropy_weight=torch.tensor(alphas, dtype=torch.float64),
    )
    logits, target = 3 * random_logits(0, 3, 20, classes), random_labels(2, classes, 20)
    expected = [by_autograd(lambda z, m=m: m(z, target), logits[k]) for k, m in enumerate(modules)]
    torch.testing.assert_close(
        gradient(logits, target), torch.stack(expected), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("variable", VARIABLES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype, variable):
    gradient, logits, target = case(classes=10, variable=variable, dtype=torch.float32)
    logits = logits.to(dtype)
    result = gradient(logits, target)
    assert result.dtype == dtype
    exact = gradient(logits.float(), target)
    assert torch.equal(result, exact.to(dtype))
    precise = gradient_of(random_theta(1, 3), variable)(logits.double(), target)
    torch.testing.assert_close(exact.double(), precise, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variable", VARIABLES)
@pytest.mark.parametrize("classes", [5, 40])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_a_number_stays_with_its_candidate(bad, classes, variable):
    gradient, logits, target = case(classes=classes, variable=variable)
    before = gradient(logits, target)
    logits[1, 3, 2] = bad
    after = gradient(logits, target)
    assert torch.equal(after[[0, 2]], before[[0, 2]])
    assert bool(after[1].isfinite().all()) == (bad == -float("inf"))


@pytest.mark.parametrize("classes", [3, 40])
@pytest.mark.parametrize("variable", VARIABLES)
def test_saturated_logits_have_finite_gradients(variable, classes):
    gradient, logits, target = case(classes=classes, variable=variable, dtype=torch.float32)
    assert gradient(1e4 * logits, target).isfinite().all()


def test_keeps_candidates():
    alpha = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    theta, (_, logits, target) = random_theta(1, 3), case()
    expected = gradient_of(theta, alpha=alpha)(logits, target)
    gradient = gradient_of(theta, alpha=alpha)
    gradient.keep([2, 0])
    assert torch.equal(gradient(logits[[2, 0]], target), expected[[2, 0]])


def test_leaves_its_arguments_alone_and_records_nothing():
    gradient, logits, target = case()
    before = logits.clone()
    assert not gradient(logits.requires_grad_(), target).requires_grad
    assert torch.equal(logits, before)


def test_a_label_out_of_range_is_named():
    gradient, logits, _ = case(samples=1)
    with pytest.raises(IndexError, match="label 5 is out of range for 5 classes"):
        gradient(logits, torch.tensor([5]))


@needs_cuda
@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("variable", VARIABLES)
def test_a_cuda_graph_holds_it(variable, classes):
    """Nothing in it waits for the device; the graph gives what the CPU gives."""
    _, logits, target = case(classes=classes)
    theta, alpha = random_theta(1, 3), torch.rand(3, dtype=torch.float64)
    expected = gradient_of(theta, variable, alpha)(logits, target)
    gradient = gradient_of(theta.cuda(), variable, alpha.cuda())
    still, labels = torch.zeros_like(logits, device="cuda"), target.cuda()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        gradient(still, labels)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = gradient(still, labels)
    still.copy_(logits)
    graph.replay()
    torch.testing.assert_close(result.cpu(), expected, rtol=1e-10, atol=1e-10)
