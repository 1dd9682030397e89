import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from optuna_robustloss.tasks import noise
from optuna_robustloss.tasks.class_maps import CIFAR100_SUPERCLASSES, class_map_for
from optuna_robustloss.tasks.noise import NoiseSpec, corrupt, realised, transition_matrix
from optuna_robustloss.tasks.seeds import uniform

DRAWN = st.sampled_from(["symmetric", "pair-flip", "asymmetric"])
RATES = st.floats(0, 1)
SEEDS = st.integers(0, 2**32)


def cycle(n, num_classes=10):
    return torch.arange(n) % num_classes


def drawn(text, labels, seed=0, dataset="mnist", num_classes=10):
    return corrupt(NoiseSpec.parse(text), labels, num_classes, dataset=dataset, seed=seed)


def human_archive(root, name, **arrays):
    folder = root / "cifar-n"
    folder.mkdir(exist_ok=True)
    np.savez(folder / name, **arrays)


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


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("symmetric:0.8", [3, 3, 3, 3, 8, 9, 0, 6, 8, 5, 7, 9, 6, 6, 9, 5, 3, 2, 8, 4]),
        ("pair-flip:0.4", [0, 1, 2, 3, 5, 6, 6, 7, 9, 9, 1, 2, 3, 4, 5, 5, 6, 7, 9, 0]),
        ("asymmetric:0.4", [0, 1, 2, 3, 4, 6, 5, 7, 8, 9, 0, 1, 7, 8, 4, 5, 5, 1, 8, 9]),
    ],
)
def test_golden_labels_are_the_same_on_every_host(text, expected):
    assert drawn(text, cycle(20), seed=42).labels.tolist() == expected


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


# Matrices and class maps


def test_pair_flip_goes_to_the_next_class_and_around():
    noisy = drawn("pair-flip:1", cycle(10))
    assert noisy.labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        ("mnist", [0, 1, 7, 8, 4, 6, 5, 1, 8, 9]),
        ("digits", [0, 1, 7, 8, 4, 6, 5, 1, 8, 9]),
        ("cifar10", [0, 1, 0, 5, 7, 3, 6, 7, 8, 1]),
    ],
)
def test_asymmetric_follows_the_class_map(dataset, expected):
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


@pytest.mark.skipif("OPTUNA_ROBUSTLOSS_DATA" not in os.environ, reason="needs the real data")
def test_superclasses_are_those_of_the_real_cifar100():
    path = Path(os.environ["OPTUNA_ROBUSTLOSS_DATA"]) / "cifar-100-python" / "train"
    if not path.is_file():
        pytest.skip("no CIFAR-100 in the data folder")
    with path.open("rb") as file:
        data = pickle.load(file, encoding="latin1")
    pairs = set(zip(data["coarse_labels"], data["fine_labels"], strict=True))
    assert pairs == {(c, f) for c, row in enumerate(CIFAR100_SUPERCLASSES) for f in row}


@pytest.mark.skipif("OPTUNA_ROBUSTLOSS_DATA" not in os.environ, reason="needs the real data")
@pytest.mark.parametrize(("name", "rate"), [("worse_label", 0.4021), ("aggre_label", 0.0901)])
def test_real_cifar10n_has_the_published_rates(name, rate):
    root = Path(os.environ["OPTUNA_ROBUSTLOSS_DATA"])
    path = root / "cifar-n" / "CIFAR-10_human.npz"
    if not path.is_file():
        pytest.skip("no CIFAR-10N in the data folder")
    clean = torch.from_numpy(np.load(path)["clean_label"])
    spec = NoiseSpec.parse(f"human:{name}")
    noisy = corrupt(spec, clean, 10, dataset="cifar10", seed=0, root=root)
    assert noisy.rate == pytest.approx(rate, abs=1e-4)


@settings(max_examples=30, deadline=None)
@given(kind=DRAWN, rate=RATES)
def test_nominal_matrix_is_row_stochastic_with_the_rate_beside_the_diagonal(kind, rate):
    matrix = transition_matrix(NoiseSpec(kind=kind, rate=rate), "cifar100", 100)
    assert torch.allclose(matrix.sum(1), torch.ones(100, dtype=torch.float64))
    assert torch.allclose(1 - matrix.diag(), torch.full((100,), rate, dtype=torch.float64))


def test_symmetric_matrix_spreads_the_rate_over_the_other_classes():
    matrix = transition_matrix(NoiseSpec.parse("symmetric:0.6"), "mnist", 4)
    assert matrix[0].tolist() == pytest.approx([0.4, 0.2, 0.2, 0.2])


@pytest.mark.parametrize("suffix", ["npy", "npz", "csv", "txt"])
def test_matrix_is_read_from_each_format(tmp_path, suffix):
    matrix = np.array([[0.5, 0.5, 0], [0, 0.25, 0.75], [0, 0, 1]])
    path = tmp_path / f"m.{suffix}"
    {
        "npy": lambda: np.save(path, matrix),
        "npz": lambda: np.savez(path, matrix),
        "csv": lambda: np.savetxt(path, matrix, delimiter=","),
        "txt": lambda: np.savetxt(path, matrix),
    }[suffix]()
    read = transition_matrix(NoiseSpec(kind="matrix", path=path), "anything", 3)
    assert torch.equal(read, torch.from_numpy(matrix))


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.eye(9), r"\(10, 10\) matrix, got shape \(9, 9\)"),
        (np.eye(10) * 0.9, "row 0 must sum to 1, got 0.9"),
        (np.eye(10) * 2 - np.roll(np.eye(10), 1, 0), "0 or more, got -1"),
        (np.full((10, 10), np.nan), "0 or more, got nan"),
    ],
)
def test_a_matrix_that_is_none_is_refused(tmp_path, matrix, message):
    np.save(tmp_path / "m.npy", matrix)
    with pytest.raises(ValueError, match=message):
        drawn(f"matrix:{tmp_path / 'm.npy'}", cycle(20))


@pytest.mark.parametrize("text", ["human:worse_label", "file:labels.npy", "given"])
def test_kinds_without_a_nominal_matrix_say_so(text):
    with pytest.raises(ValueError, match="no nominal matrix"):
        transition_matrix(NoiseSpec.parse(text), "cifar10", 10)


@pytest.mark.parametrize("dataset", ["fashion-mnist", "clothing1m"])
def test_asymmetric_without_a_class_map_points_to_the_alternatives(dataset):
    with pytest.raises(
        ValueError, match=rf"{dataset}.*cifar10, cifar100, digits, mnist.*pair-flip"
    ):
        drawn("asymmetric:0.4", cycle(20), dataset=dataset)


def test_class_map_of_another_number_of_classes_is_refused():
    with pytest.raises(ValueError, match="for 10 classes, got num_classes=12"):
        drawn("asymmetric:0.4", cycle(20), num_classes=12)


# Labels from files


def test_human_labels_are_taken_as_they_are(tmp_path):
    clean, worse = np.arange(40) % 10, (np.arange(40) + 1) % 10
    human_archive(tmp_path, "CIFAR-10_human.npz", clean_label=clean, worse_label=worse)
    spec = NoiseSpec.parse("human:worse_label")
    noisy = corrupt(spec, torch.from_numpy(clean), 10, dataset="cifar10", seed=0, root=tmp_path)
    assert noisy.labels.tolist() == worse.tolist()
    assert noisy.rate == 1.0
    path = tmp_path / "cifar-n" / "CIFAR-10_human.npz"
    named = NoiseSpec(kind="human", name="worse_label", path=path)
    again = corrupt(named, torch.from_numpy(clean), 10, dataset="cifar10", seed=0)
    assert torch.equal(again.labels, noisy.labels)


@pytest.mark.parametrize(
    ("name", "clean_shift", "num_labels", "message"),
    [
        ("bad_label", 0, 40, "no array 'bad_label' .* it has noisy_label$"),
        ("noisy_coarse_label", 0, 40, "no array 'noisy_coarse_label'"),
        ("clean_label", 0, 40, "no array 'clean_label'"),
        ("noisy_label", 1, 40, "not aligned"),
        ("noisy_label", 0, 39, r"must hold 40 labels in one row, got shape \(39,\)"),
    ],
)
def test_human_labels_that_do_not_fit_are_refused(tmp_path, name, clean_shift, num_labels, message):
    clean = cycle(40, 100)
    human_archive(
        tmp_path,
        "CIFAR-100_human.npz",
        clean_label=clean.numpy() + clean_shift,
        noisy_label=np.zeros(num_labels, dtype=np.int64),
        noisy_coarse_label=np.zeros(40, dtype=np.int64),
    )
    with pytest.raises(ValueError, match=message):
        corrupt(
            NoiseSpec.parse(f"human:{name}"), clean, 100, dataset="cifar100", seed=0, root=tmp_path
        )


def test_human_labels_need_a_known_data_set_a_place_and_a_file(tmp_path):
    spec, labels = NoiseSpec.parse("human:worse_label"), cycle(20)
    with pytest.raises(ValueError, match="exist for cifar10, cifar100, not for 'mnist'"):
        corrupt(spec, labels, 10, dataset="mnist", seed=0, root=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"CIFAR-10_human\.npz"):
        corrupt(spec, labels, 10, dataset="cifar10", seed=0, root=tmp_path)


@pytest.mark.parametrize("suffix", ["npy", "txt", "csv"])
def test_labels_are_read_from_a_file(tmp_path, suffix):
    labels = (np.arange(20) * 3) % 10
    path = tmp_path / f"labels.{suffix}"
    if suffix == "npy":
        np.save(path, labels)
    else:
        np.savetxt(path, labels)
    noisy = drawn(f"file:{path}", cycle(20))
    assert noisy.labels.dtype == torch.int64
    assert noisy.labels.tolist() == labels.tolist()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros(19, dtype=np.int64), r"must hold 20 labels in one row, got shape \(19,\)"),
        (np.full(20, 10), r"must be in \[0, 10\), got 10"),
        (np.full(20, -1), r"must be in \[0, 10\), got -1"),
        (np.full(20, 0.5), "whole numbers"),
        (np.full(20, np.nan), "whole numbers"),
        (np.full(20, "1"), "whole numbers"),
    ],
)
def test_a_file_of_labels_that_does_not_fit_is_refused(tmp_path, labels, message):
    np.save(tmp_path / "labels.npy", labels)
    with pytest.raises(ValueError, match=message):
        drawn(f"file:{tmp_path / 'labels.npy'}", cycle(20))


def test_a_file_is_refused_if_absent_of_unknown_format_of_many_arrays_or_pickled(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.npy"):
        drawn(f"file:{tmp_path / 'absent.npy'}", cycle(20))
    (tmp_path / "labels.json").write_text("[]")
    with pytest.raises(ValueError, match=r"\.npy, \.npz, \.csv or \.txt, got '\.json'"):
        drawn(f"file:{tmp_path / 'labels.json'}", cycle(20))
    np.savez(tmp_path / "two.npz", a=np.zeros(20), b=np.zeros(20))
    with pytest.raises(ValueError, match="one array, it has a, b"):
        drawn(f"file:{tmp_path / 'two.npz'}", cycle(20))
    np.save(tmp_path / "objects.npy", np.array([{}] * 20, dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle"):
        drawn(f"file:{tmp_path / 'objects.npy'}", cycle(20))


def test_labels_that_come_with_the_data_are_compared_with_the_clean_ones():
    clean, with_the_data = torch.tensor([0, 0, 1, 1, 1, 1]), torch.tensor([0, 1, 1, 1, 1, 2])
    noisy = realised(clean, with_the_data, 3)
    assert noisy.transition.tolist() == [[0.5, 0.5, 0.0], [0.0, 0.75, 0.25], [0.0, 0.0, 1.0]]
    assert noisy.rate == pytest.approx(2 / 6)
    with pytest.raises(ValueError, match="given labels must hold 6 labels"):
        realised(clean, with_the_data[:5], 3)
    with pytest.raises(ValueError, match=r"given labels must be in \[0, 2\), got 2"):
        realised(clean, with_the_data, 2)


# Errors at the door


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 10]), r"labels must be in \[0, 10\), got 10"),
        (torch.tensor([0, -1]), r"labels must be in \[0, 10\), got -1"),
        (torch.zeros(2, 2, dtype=torch.int64), r"one row, got shape \(2, 2\)"),
        (torch.tensor([0.5]), "whole numbers"),
        (torch.tensor([True]), "whole numbers"),
        (torch.zeros(0, dtype=torch.int64), r"some labels in one row, got shape \(0,\)"),
    ],
)
def test_labels_that_are_none_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        drawn("symmetric:0.5", labels)


def test_seed_number_of_classes_and_given_are_checked():
    with pytest.raises(ValueError, match="seed must be 0 or more, got -1"):
        drawn("symmetric:0.5", cycle(20), seed=-1)
    with pytest.raises(ValueError, match="at least 2, got 1"):
        drawn("symmetric:0.5", cycle(20, 1), num_classes=1)
    with pytest.raises(ValueError, match="'given' draws nothing"):
        drawn("given", cycle(20))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "symmetric", "rate": 1.2}, "less than or equal to 1"),
        ({"kind": "symmetric", "rate": -0.1}, "greater than or equal to 0"),
        ({"kind": "symmetric", "rate": float("nan")}, "finite"),
        ({"kind": "symmetric"}, "needs a rate"),
        ({"kind": "none", "rate": 0.2}, "'none' takes no rate, got 0.2"),
        ({"kind": "human"}, "needs the name"),
        ({"kind": "symmetric", "rate": 0.2, "name": "x"}, "takes no name, got 'x'"),
        ({"kind": "matrix"}, "needs the path"),
        ({"kind": "file"}, "needs the path"),
        ({"kind": "given", "path": "x.npy"}, "takes no path, got 'x.npy'"),
        ({"kind": "uniform", "rate": 0.2}, "'none', 'symmetric'"),
        ({"kind": "none", "ratio": 0.2}, "ratio"),
    ],
)
def test_contradictory_specifications_are_refused(fields, message):
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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("symmetric", "needs a rate"),
        ("symmetric:", "valid number"),
        ("symmetric:much", "valid number"),
        ("none:0.2", "takes no argument, got '0.2'"),
        ("gaussian:0.2", "'none', 'symmetric'"),
        ("human", "needs the name"),
        ("file", "needs the path"),
    ],
)
def test_text_that_is_no_specification_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        NoiseSpec.parse(text)
