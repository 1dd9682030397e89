"""Nominal matrices of label noise, and the class maps of asymmetric noise."""

import os
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optuna_robustloss.tasks.class_maps import CIFAR100_SUPERCLASSES, class_map_for
from optuna_robustloss.tasks.noise import NoiseSpec, corrupt, transition_matrix


def cycle(n, num_classes=10):
    return torch.arange(n) % num_classes


def drawn(text, labels, dataset="mnist", num_classes=10):
    return corrupt(NoiseSpec.parse(text), labels, num_classes, dataset=dataset, seed=0)


def test_pair_flip_goes_to_the_next_class_and_around():
    noisy = drawn("pair-flip:1", cycle(10))
    assert noisy.labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]


def test_asymmetric_follows_the_class_map():
    for dataset, expected in [
        ("mnist", [0, 1, 7, 8, 4, 6, 5, 1, 8, 9]),
        ("digits", [0, 1, 7, 8, 4, 6, 5, 1, 8, 9]),
        ("cifar10", [0, 1, 0, 5, 7, 3, 6, 7, 8, 1]),
    ]:
        assert drawn("asymmetric:1", cycle(10), dataset=dataset).labels.tolist() == expected


def test_asymmetric_cifar100_stays_in_the_superclass_and_is_a_cycle_of_five():
    assert sorted(c for row in CIFAR100_SUPERCLASSES for c in row) == list(range(100))
    mapping = class_map_for("cifar100", 100)
    for row in CIFAR100_SUPERCLASSES:
        seen = [row[0]]
        for _ in range(4):
            seen.append(mapping[seen[-1]])
        assert sorted(seen) == sorted(row)
        assert mapping[seen[-1]] == row[0]
    assert mapping[30] == 55  # dolphin → otter
    assert mapping[95] == 4  # whale → beaver


def test_asymmetric_blocks_go_to_the_next_of_five_fine_indices():
    noisy = drawn("asymmetric-blocks:1", cycle(100, 100), dataset="cifar100", num_classes=100)
    # build_for_cifar100 of giorgiop/loss-correction, noise.py: ones right of the diagonal, around
    block = torch.zeros(5, 5)
    block[[0, 1, 2, 3, 4], [1, 2, 3, 4, 0]] = 1
    assert torch.equal(noisy.transition.float(), torch.block_diag(*[block] * 20))
    inside = class_map_for("cifar100", 100)
    same = [c for c, target in enumerate(noisy.labels.tolist()) if inside[c] == target]
    assert same == [6, 42, 63, 86]
    with pytest.raises(ValueError, match=r"it has for cifar100\); use 'asymmetric'"):
        drawn("asymmetric-blocks:0.4", cycle(20), dataset="cifar10")


@pytest.mark.skipif("OPTUNA_ROBUSTLOSS_DATA" not in os.environ, reason="needs the real data")
def test_superclasses_are_those_of_the_real_cifar100():
    path = Path(os.environ["OPTUNA_ROBUSTLOSS_DATA"]) / "cifar-100-python" / "train"
    if not path.is_file():
        pytest.skip("no CIFAR-100 in the data folder")
    with path.open("rb") as file:
        data = pickle.load(file, encoding="latin1")
    pairs = set(zip(data["coarse_labels"], data["fine_labels"], strict=True))
    assert pairs == {(c, f) for c, row in enumerate(CIFAR100_SUPERCLASSES) for f in row}


@settings(max_examples=30, deadline=None)
@given(kind=st.sampled_from(["symmetric", "pair-flip", "asymmetric"]), rate=st.floats(0, 1))
def test_nominal_matrix_is_row_stochastic_with_the_rate_beside_the_diagonal(kind, rate):
    matrix = transition_matrix(NoiseSpec(kind=kind, rate=rate), "cifar100", 100)
    assert torch.allclose(matrix.sum(1), torch.ones(100, dtype=torch.float64))
    assert torch.allclose(1 - matrix.diag(), torch.full((100,), rate, dtype=torch.float64))


def test_symmetric_matrix_spreads_the_rate_over_the_other_classes():
    matrix = transition_matrix(NoiseSpec.parse("symmetric:0.6"), "mnist", 4)
    assert matrix[0].tolist() == pytest.approx([0.4, 0.2, 0.2, 0.2])


def test_asymmetric_without_a_class_map_points_to_the_alternatives():
    for dataset in ("fashion-mnist", "clothing1m"):
        with pytest.raises(
            ValueError, match=rf"{dataset}.*cifar10, cifar100, digits, .*mnist.*pair-flip"
        ):
            drawn("asymmetric:0.4", cycle(20), dataset=dataset)


def test_class_map_of_another_number_of_classes_is_refused():
    with pytest.raises(ValueError, match="for 10 classes, got num_classes=12"):
        drawn("asymmetric:0.4", cycle(20), num_classes=12)
