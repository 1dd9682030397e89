import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from optuna_robustloss.seeds import uniform
from optuna_robustloss.tasks import noise
from optuna_robustloss.tasks.noise import NoiseSpec, corrupt, transition_matrix

DRAWN = st.sampled_from(["symmetric", "pair-flip", "asymmetric"])
EXACT = st.sampled_from(["symmetric", "pair-flip", "asymmetric", "asymmetric-blocks"])
RATES = st.floats(0, 1)
SEEDS = st.integers(0, 2**32)


def cycle(n, num_classes=10):
    return torch.arange(n) % num_classes


def drawn(text, labels, seed=0, dataset="mnist", num_classes=10):
    return corrupt(NoiseSpec.parse(text), labels, num_classes, dataset=dataset, seed=seed)


# What the noise does


@settings(max_examples=40, deadline=None)
@given(kind=DRAWN, rate=RATES, seed=SEEDS)
def test_each_class_is_flipped_at_the_nominal_rate(kind, rate, seed):
    n = 500
    labels = cycle(10 * n)
    spec = NoiseSpec(kind=kind, rate=rate)
    noisy = corrupt(spec, labels, 10, dataset="mnist", seed=seed)
    nominal = transition_matrix(spec, "mnist", 10)
    bound = 6 * torch.sqrt(nominal * (1 - nominal) / n) + 1e-9 + 3 / n
    assert ((noisy.transition - nominal).abs() <= bound).all()


@settings(max_examples=30, deadline=None)
@given(kind=DRAWN, rate=RATES, seed=SEEDS, n=st.integers(1, 300))
def test_realised_matrix_and_rate_match_a_count(kind, rate, seed, n):
    labels = cycle(n, 7)  # classes 7, 8 and 9 have no image
    noisy = corrupt(NoiseSpec(kind=kind, rate=rate), labels, 10, dataset="mnist", seed=seed)
    assert noisy.transition.dtype == torch.float64
    assert torch.allclose(noisy.transition.sum(1), torch.ones(10, dtype=torch.float64))
    for i in range(10):
        given_labels = noisy.labels[labels == i].tolist()
        for j in range(10):
            share = given_labels.count(j) / len(given_labels) if given_labels else float(i == j)
            assert noisy.transition[i, j].item() == pytest.approx(share)
    wrong = sum(a != b for a, b in zip(noisy.labels.tolist(), labels.tolist(), strict=True))
    assert noisy.rate == pytest.approx(wrong / n)


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, num_classes=st.integers(2, 120))
def test_symmetric_at_rate_one_never_gives_the_true_class(seed, num_classes):
    labels = cycle(400, num_classes)
    noisy = drawn("symmetric:1", labels, seed, num_classes=num_classes)
    assert (noisy.labels != labels).all()
    assert noisy.labels.max() < num_classes
    assert noisy.rate == 1.0


@settings(max_examples=30, deadline=None)
@given(kind=DRAWN, rate=RATES, seed=SEEDS, n=st.integers(1, 200))
def test_label_of_an_image_does_not_depend_on_the_images_after_it(kind, rate, seed, n):
    spec, labels = NoiseSpec(kind=kind, rate=rate), cycle(200)
    whole = corrupt(spec, labels, 10, dataset="mnist", seed=seed)
    part = corrupt(spec, labels[:n], 10, dataset="mnist", seed=seed)
    assert torch.equal(whole.labels[:n], part.labels)


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, image=st.integers(0, 199))
def test_label_of_an_image_does_not_depend_on_the_other_labels(seed, image):
    labels = cycle(200)
    others = (labels + 3) % 10
    others[image] = labels[image]
    a, b = drawn("symmetric:0.5", labels, seed), drawn("symmetric:0.5", others, seed)
    assert a.labels[image] == b.labels[image]


def test_same_seed_same_labels_and_other_seed_other_labels():
    labels = cycle(1000)
    first = drawn("symmetric:0.5", labels, seed=3)
    assert torch.equal(first.labels, drawn("symmetric:0.5", labels, seed=3).labels)
    assert not torch.equal(first.labels, drawn("symmetric:0.5", labels, seed=4).labels)


def test_noise_does_not_share_its_stream_with_another_use_of_the_same_seed():
    plain = uniform(5, 2000) < 0.5
    flipped = (drawn("symmetric:0.5", cycle(2000), seed=5).labels != cycle(2000)).numpy()
    assert abs(np.corrcoef(plain, flipped)[0, 1]) < 0.1


def test_golden_labels_are_the_same_on_every_host():
    for text, expected in [
        ("symmetric:0.8", [3, 3, 3, 3, 8, 9, 0, 6, 8, 5, 7, 9, 6, 6, 9, 5, 3, 2, 8, 4]),
        ("pair-flip:0.4", [0, 1, 2, 3, 5, 6, 6, 7, 9, 9, 1, 2, 3, 4, 5, 5, 6, 7, 9, 0]),
        ("asymmetric:0.4", [0, 1, 2, 3, 4, 6, 5, 7, 8, 9, 0, 1, 7, 8, 4, 5, 5, 1, 8, 9]),
    ]:
        assert drawn(text, cycle(20), seed=42).labels.tolist() == expected


# Exact counts


@settings(max_examples=40, deadline=None)
@given(kind=EXACT, rate=RATES, seed=SEEDS, images=st.integers(1, 40))
def test_with_exact_counts_that_share_of_each_class_is_wrong(kind, rate, seed, images):
    labels, spec = cycle(100 * images, 100), NoiseSpec(kind=kind, rate=rate, counts="exact")
    noisy = corrupt(spec, labels, 100, dataset="cifar100", seed=seed)
    wrong = labels[noisy.labels != labels].bincount(minlength=100)
    assert (wrong - rate * images).min() > -1.0001
    assert (wrong - rate * images).max() <= 1e-6
    nominal = transition_matrix(spec, "cifar100", 100)
    assert (nominal[labels, noisy.labels] > 0).all()


def test_exact_counts_of_symmetric_noise_spread_over_the_other_classes():
    noisy = drawn("symmetric:0.8:exact", cycle(10_000), seed=1)
    assert noisy.rate == 0.8
    off = noisy.transition[~torch.eye(10, dtype=torch.bool)]
    assert (off - 0.8 / 9).abs().max() < 0.05
    assert not torch.equal(noisy.labels, drawn("symmetric:0.8:exact", cycle(10_000), 2).labels)


def test_no_noise_gives_a_copy_of_the_labels():
    labels = cycle(30)
    noisy = drawn("none", labels)
    assert torch.equal(noisy.labels, labels)
    assert noisy.rate == 0.0
    assert torch.equal(noisy.transition, torch.eye(10, dtype=torch.float64))
    noisy.labels[0] = 5
    assert labels[0] == 0


def test_labels_come_back_as_int64():
    assert drawn("symmetric:0.5", cycle(30).to(torch.uint8)).labels.dtype == torch.int64


@pytest.mark.parametrize(("u", "expected"), [(0.0, 1), (1 - 2**-53, 10)])
def test_a_class_without_probability_is_never_drawn(tmp_path, monkeypatch, u, expected):
    # Ten times 0.1 sums to 1 − 2⁻⁵³ in floating point, which the largest uniform number reaches.
    row = [0.0] + [0.1] * 10 + [0.0]
    np.save(tmp_path / "m.npy", np.array([row] * 12))
    monkeypatch.setattr(noise, "uniform", lambda seed, count: np.full(count, u))
    noisy = drawn(f"matrix:{tmp_path / 'm.npy'}", cycle(12, 12), num_classes=12)
    assert noisy.labels.tolist() == [expected] * 12


# Errors at the door


def test_labels_that_are_none_are_refused():
    for labels, message in [
        (torch.tensor([0, 10]), r"labels must be in \[0, 10\), got 10"),
        (torch.tensor([0, -1]), r"labels must be in \[0, 10\), got -1"),
        (torch.zeros(2, 2, dtype=torch.int64), r"one row, got shape \(2, 2\)"),
        (torch.tensor([0.5]), "whole numbers"),
        (torch.tensor([True]), "whole numbers"),
        (torch.zeros(0, dtype=torch.int64), r"some labels in one row, got shape \(0,\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            drawn("symmetric:0.5", labels)


def test_seed_number_of_classes_and_given_are_checked():
    with pytest.raises(ValueError, match="seed must be 0 or more, got -1"):
        drawn("symmetric:0.5", cycle(20), seed=-1)
    with pytest.raises(ValueError, match="at least 2, got 1"):
        drawn("symmetric:0.5", cycle(20, 1), num_classes=1)
    with pytest.raises(ValueError, match="'given' draws nothing"):
        drawn("given", cycle(20))


def test_contradictory_specifications_are_refused():
    for fields, message in [
        ({"kind": "symmetric", "rate": 1.2}, "less than or equal to 1"),
        ({"kind": "symmetric", "rate": -0.1}, "greater than or equal to 0"),
        ({"kind": "symmetric", "rate": float("nan")}, "finite"),
        ({"kind": "symmetric"}, "needs a rate"),
        ({"kind": "none", "rate": 0.2}, "'none' takes no rate, got 0.2"),
        ({"kind": "human"}, "needs the name"),
        ({"kind": "symmetric", "rate": 0.2, "name": "x"}, "takes no name, got 'x'"),
        ({"kind": "matrix"}, "needs the path"),
        ({"kind": "none", "counts": "exact"}, "'none' takes no counts, got 'exact'"),
        ({"kind": "symmetric", "rate": 0.2, "counts": "some"}, "'random' or 'exact'"),
        ({"kind": "file"}, "needs the path"),
        ({"kind": "given", "path": "x.npy"}, "takes no path, got 'x.npy'"),
        ({"kind": "uniform", "rate": 0.2}, "'none', 'symmetric'"),
        ({"kind": "none", "ratio": 0.2}, "ratio"),
    ]:
        with pytest.raises(ValidationError, match=message):
            NoiseSpec(**fields)


@pytest.mark.parametrize(
    ("text", "label", "symmetric"),
    [
        ("none", "clean", True),
        ("symmetric:0.8", "symmetric 80 %", True),
        ("symmetric:0.125", "symmetric 12.5 %", True),
        ("pair-flip:0.45", "pair-flip 45 %", False),
        ("asymmetric:0.4", "asymmetric 40 %", False),
        ("asymmetric-blocks:0.4", "asymmetric-blocks 40 %", False),
        ("symmetric:0.8:exact", "symmetric 80 %, exact counts", True),
        ("human:worse_label", "human worse_label", False),
        ("matrix:some/m.npy", "matrix m.npy", False),
        ("file:some/labels.csv", "file labels.csv", False),
        ("given", "given labels", False),
    ],
)
def test_parse_label_and_symmetry(text, label, symmetric):
    spec = NoiseSpec.parse(text)
    assert spec.label == label
    assert spec.symmetric is symmetric
    assert NoiseSpec.model_validate_json(spec.model_dump_json()) == spec


def test_text_that_is_no_specification_is_refused():
    for text, message in [
        ("symmetric", "needs a rate"),
        ("symmetric:", "valid number"),
        ("symmetric:much", "valid number"),
        ("none:0.2", "takes no argument, got '0.2'"),
        ("symmetric:0.2:", "'random' or 'exact'"),
        ("symmetric:0.2:exact:3", "'random' or 'exact'"),
        ("gaussian:0.2", "'none', 'symmetric'"),
        ("human", "needs the name"),
        ("file", "needs the path"),
    ]:
        with pytest.raises(ValueError, match=message):
            NoiseSpec.parse(text)
