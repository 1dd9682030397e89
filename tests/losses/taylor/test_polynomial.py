"""The coefficients of Eq. 4, the canonical form and the printed polynomial."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from losses.reference import eq4_terms, random_labels, random_logits, random_theta, thetas
from optuna_robustloss.losses import (
    MAE_THETA,
    MSE_THETA,
    canonical,
    canonical_names,
    equivalent,
    from_canonical,
    taylor_loss,
)
from optuna_robustloss.losses.taylor.polynomial import expand, format_polynomial, hard_polynomials

VARIABLES = ["probability", "log"]

few = settings(max_examples=25, deadline=None)


def gradient(theta, variable="probability", soft=None):
    logits = 3 * random_logits(0, 20, 5)
    logits.requires_grad_()
    target = random_labels(1, 5, 20) if soft is None else soft
    taylor_loss(logits, target, theta, variable=variable).backward()
    return logits.grad


def moved(theta, index, change):
    theta = torch.as_tensor(theta, dtype=torch.float64).clone()
    theta[index] += change
    return theta


def scaled(theta, factor):
    theta = torch.as_tensor(theta, dtype=torch.float64).clone()
    theta[2:] *= factor
    return theta


# --- Multiplying Eq. 4 out ---


@few
@given(thetas, st.floats(0, 1), st.floats(0, 1))
def test_expanded_coefficients_evaluate_to_eq4(theta, v, y):
    theta = torch.tensor(theta, dtype=torch.float64)
    c = expand(theta)
    value = sum(c[a, b] * v**a * y**b for a in range(5) for b in range(4))
    v, y = torch.tensor([v, y], dtype=torch.float64)
    torch.testing.assert_close(value, eq4_terms(v, y, theta), rtol=1e-10, atol=1e-10)


@few
@given(thetas, st.floats(0, 1))
def test_hard_labels_need_a_quartic_and_a_cubic(theta, v):
    theta = torch.tensor(theta, dtype=torch.float64)
    p0, label_delta = hard_polynomials(expand(theta))
    assert (p0.shape, label_delta.shape) == ((5,), (4,))
    at_0 = sum(c * v**k for k, c in enumerate(p0))
    at_1 = at_0 + sum(c * v**k for k, c in enumerate(label_delta))
    v = torch.tensor(v, dtype=torch.float64)
    for value, y in ((at_0, 0.0), (at_1, 1.0)):
        expected = eq4_terms(v, torch.tensor(y, dtype=torch.float64), theta)
        torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-10)


def test_a_population_expands_candidate_by_candidate():
    population = random_theta(0, population=4)
    torch.testing.assert_close(expand(population), torch.stack([expand(t) for t in population]))


def test_theta_holds_the_partial_derivatives_of_cross_entropy():
    """Of −y·log p − (1−y)·log(1−p) at (½, ½): θ3 = 4, θ5 = 96, θ6 = −4, θ9 = −32, others 0."""
    p = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    y = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    theta = torch.tensor([0.5, 0.5, 0, 4, 0, 96, -4, 0, 0, -32, 0, 0], dtype=torch.float64)
    orders = ["p", "pp", "ppp", "pppp", "py", "pyy", "ppy", "pppy", "pyyy", "ppyy"]  # θ2 … θ11

    def derivative(of, order):
        for name in order:
            variable = p if name == "p" else y
            if not of.requires_grad:
                return torch.zeros(())
            (of,) = torch.autograd.grad(
                of, variable, create_graph=True, allow_unused=True, materialize_grads=True
            )
        return of

    cross_entropy = -y * p.log() - (1 - y) * (1 - p).log()
    of_cross_entropy = [derivative(cross_entropy, order).item() for order in orders]
    polynomial = sum(expand(theta)[a, b] * p**a * y**b for a in range(5) for b in range(4))
    of_polynomial = [derivative(polynomial, order).item() for order in orders]
    assert of_cross_entropy == pytest.approx(theta[2:].tolist(), abs=1e-9)
    assert of_polynomial == pytest.approx(theta[2:].tolist(), abs=1e-9)


# --- The canonical form ---


def test_canonical_numbers_of_the_known_losses():
    assert canonical_names() == ("a2", "a3", "a4", "d1", "d2", "d3")
    assert canonical_names("log") == ("a1", "a2", "a3", "a4", "d1", "d2", "d3")
    assert canonical(MAE_THETA).tolist() == pytest.approx([0, 0, 0, -2, 0, 0])
    assert canonical(MSE_THETA).tolist() == pytest.approx([1, 0, 0, -2, 0, 0])
    assert canonical(MAE_THETA, variable="log").tolist() == pytest.approx([1, 0, 0, 0, -2, 0, 0])


@few
@given(thetas, st.floats(-5, 5))
def test_a_multiple_of_the_probability_is_gauge(theta, c):
    """Probabilities sum to one, so adding c·ŷ (θ2) moves neither gradient nor canonical form."""
    other = moved(theta, 2, c)
    torch.testing.assert_close(canonical(other), canonical(theta), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gradient(other), gradient(theta), rtol=1e-9, atol=1e-9)


def test_the_linear_term_counts_in_the_log_variable():
    """There the sum over classes is not constant."""
    theta = random_theta(3)
    other = moved(theta, 2, 1.0)
    assert not torch.allclose(gradient(other, "log"), gradient(theta, "log"), atol=1e-3)
    change = canonical(other, variable="log") - canonical(theta, variable="log")
    assert change.tolist() == pytest.approx([1, 0, 0, 0, 0, 0, 0])


@pytest.mark.parametrize("variable", VARIABLES)
@few
@given(thetas)
def test_equal_canonical_form_means_equal_gradient_on_hard_labels(variable, theta):
    other = from_canonical(canonical(theta, variable=variable), variable=variable)
    torch.testing.assert_close(
        gradient(other, variable), gradient(theta, variable), rtol=1e-8, atol=1e-8
    )


@pytest.mark.parametrize("variable", VARIABLES)
@few
@given(st.data())
def test_from_canonical_inverts_canonical(variable, data):
    size = len(canonical_names(variable))
    numbers = data.draw(st.lists(st.floats(-10, 10), min_size=size, max_size=size))
    theta = from_canonical(numbers, variable=variable)
    assert theta.shape == (12,)
    assert canonical(theta, variable=variable).tolist() == pytest.approx(numbers, abs=1e-9)


def test_canonical_forms_come_in_batches():
    population = random_theta(5, population=3)
    rows = torch.stack([canonical(theta) for theta in population])
    torch.testing.assert_close(canonical(population), rows)
    torch.testing.assert_close(canonical(from_canonical(rows)), rows)


def test_soft_labels_interpolate_after_from_canonical():
    theta = from_canonical([1.0, -2.0, 0.5, -1.0, 0.3, 0.7])
    v, y = torch.tensor([0.3, 0.25], dtype=torch.float64)
    at_0, at_1 = (eq4_terms(v, torch.tensor(y, dtype=torch.float64), theta) for y in (0.0, 1.0))
    torch.testing.assert_close(eq4_terms(v, y, theta), 0.75 * at_0 + 0.25 * at_1)


@pytest.mark.parametrize("variable", VARIABLES)
@few
@given(thetas, st.floats(1e-2, 1e2))
def test_equivalent_up_to_a_positive_scale(variable, theta, factor):
    form = canonical(theta, variable=variable)
    if form.norm() * min(factor, 1) < 1e-3:  # next to the zero loss
        return
    assert equivalent(theta, scaled(theta, factor), variable=variable)
    assert not equivalent(theta, scaled(theta, -factor), variable=variable)


def test_equivalent_up_to_gauge_and_nothing_more():
    theta = random_theta(7)
    assert equivalent(theta, moved(theta, 2, 4.0))
    assert not equivalent(theta, moved(theta, 2, 4.0), variable="log")
    assert not equivalent(theta, moved(theta, 4, 0.1))
    assert equivalent(theta, moved(theta, 4, 0.1), tolerance=0.5)
    assert not equivalent(MAE_THETA, MSE_THETA)


def test_zero_losses_are_equivalent_to_each_other_only():
    zero = [0.0] * 12
    assert equivalent(zero, [0.3, 0.4, 5.0] + [0.0] * 9)
    assert not equivalent(zero, MAE_THETA)
    assert not equivalent(MAE_THETA, zero)


def test_canonical_refuses_what_it_does_not_know():
    for function in (canonical, from_canonical):
        with pytest.raises(ValueError, match=r"11|\(11,\)"):
            function([0.0] * 11)
        with pytest.raises(ValueError, match=r"variable must be one of.*'logit'"):
            function([0.0] * 12, variable="logit")


def test_from_canonical_names_the_numbers_it_needs():
    with pytest.raises(ValueError, match=r"7 numbers \(a1, a2, a3, a4, d1, d2, d3\)"):
        from_canonical([0.0] * 6, variable="log")


# --- Printing ---


def test_format_polynomial():
    for coefficients, text in [
        ([1.0, 0.0, -2.5], "1 - 2.5 p²"),
        ([-0.5, 1.0, 0.0, 0.25, -0.125], "-0.5 + 1 p + 0.25 p³ - 0.125 p⁴"),
        ([0.0, -3.0], "-3 p"),
        ([0.0, 1 / 3], "0.3333 p"),
        ([1e6, 1e-9], "1e+06"),
        ([0.0, 0.0], "0"),
        ([], "0"),
    ]:
        assert format_polynomial(coefficients, "p") == text


@few
@given(st.lists(st.floats(-100, 100), min_size=5, max_size=5), st.floats(0, 1))
def test_the_printed_polynomial_evaluates_to_the_polynomial(coefficients, p):
    text = format_polynomial(coefficients, "p")
    for printed, python in {" p": "*p", "²": "**2", "³": "**3", "⁴": "**4"}.items():
        text = text.replace(printed, python)
    value = sum(c * p**k for k, c in enumerate(coefficients))
    size = max(map(abs, coefficients))
    assert math.isclose(eval(text, {"p": p}), value, abs_tol=5 * 6e-4 * size + 1e-12)
