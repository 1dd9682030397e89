import os
from pathlib import Path

import numpy as np
import pytest
import torch

from optuna_robustloss.tasks.noise import NoiseSpec, corrupt, realised, transition_matrix


def cycle(n, num_classes=10):
    return torch.arange(n) % num_classes


def read(path, labels, kind="file"):
    return corrupt(NoiseSpec(kind=kind, path=path), labels, 10, dataset="mnist", seed=0)


def human_archive(root, name, **arrays):
    folder = root / "cifar-n"
    folder.mkdir(exist_ok=True)
    np.savez(folder / name, **arrays)


# Human labels


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


def corrupt_cifar10(clean, root, path=None, name="worse_label"):
    spec = NoiseSpec(kind="human", name=name, path=path)
    return corrupt(spec, clean, 10, dataset="cifar10", seed=0, root=root)


@pytest.mark.parametrize("kind", ["numpy", "tensors"])
def test_human_labels_are_read_as_published(tmp_path, kind):
    clean = cycle(50)
    content = {"clean_label": clean, "worse_label": (clean + 1) % 10}
    if kind == "numpy":
        content = {name: labels.numpy() for name, labels in content.items()}
    (tmp_path / "cifar-n").mkdir()
    path = tmp_path / "cifar-n" / "CIFAR-10_human.pt"
    torch.save(content, path)
    before = set(torch.serialization.get_safe_globals())
    for place in (None, path):
        noisy = corrupt_cifar10(clean, tmp_path, place)
        assert noisy.labels.tolist() == ((clean + 1) % 10).tolist()
    assert set(torch.serialization.get_safe_globals()) == before


class Runs:
    """What a pickle may name: loading it would call a function."""

    def __reduce__(self):
        return os.system, ("touch pickled-code-ran",)


def test_a_torch_file_of_anything_else_is_refused_and_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    clean = cycle(50)
    path = tmp_path / "CIFAR-10_human.pt"
    good = {"worse_label": clean.numpy()}
    torch.save(good, path)
    whole = path.read_bytes()
    for content, message in [
        (Runs(), "must be a dict of arrays written by torch.save"),
        (good | {"code": Runs()}, "must be a dict of arrays written by torch.save"),
        ([1, 2], "it holds a list"),
        ({"worse_label": clean[:49].numpy()}, r"worse_label must hold 50 labels"),
        ({"worse_label": np.array([None] * 50)}, "human.pt"),
        ({"worse_label": "hello"}, r"worse_label must hold 50 labels"),
        ({"worse_label": (clean + 9).numpy()}, r"must be in \[0, 10\), got 10 \(row 1\)"),
    ]:
        torch.save(content, path)
        with pytest.raises(ValueError, match=message):
            corrupt_cifar10(clean, tmp_path, path)
    for content in (b"", b"hello", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"human\.pt must be a dict of arrays"):
            corrupt_cifar10(clean, tmp_path, path)
    assert not (tmp_path / "pickled-code-ran").exists()


def test_the_pickled_file_in_tensorflows_order_is_refused_with_the_other(tmp_path):
    path = tmp_path / "CIFAR-10_human.npy"
    np.save(path, np.array({"worse_label": np.zeros(50)}, dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"TensorFlow's order of images; take CIFAR-10_human\.pt"):
        corrupt_cifar10(cycle(50), tmp_path, path)


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


# Files of labels


@pytest.mark.parametrize("suffix", ["npy", "txt", "csv"])
def test_labels_are_read_from_a_file(tmp_path, suffix):
    labels = (np.arange(20) * 3) % 10
    path = tmp_path / f"labels.{suffix}"
    if suffix == "npy":
        np.save(path, labels)
    else:
        np.savetxt(path, labels)
    noisy = read(path, cycle(20))
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
        read(tmp_path / "labels.npy", cycle(20))


def test_a_file_is_refused_if_absent_of_unknown_format_of_many_arrays_or_pickled(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.npy"):
        read(tmp_path / "absent.npy", cycle(20))
    (tmp_path / "labels.json").write_text("[]")
    with pytest.raises(ValueError, match=r"\.npy, \.npz, \.csv, \.txt, \.pt, got '\.json'"):
        read(tmp_path / "labels.json", cycle(20))
    np.savez(tmp_path / "two.npz", a=np.zeros(20), b=np.zeros(20))
    with pytest.raises(ValueError, match="one array, it has a, b"):
        read(tmp_path / "two.npz", cycle(20))
    np.save(tmp_path / "objects.npy", np.array([{}] * 20, dtype=object), allow_pickle=True)
    with pytest.raises(
        ValueError, match=r"objects\.npy must be a plain array, it holds pickled Python objects"
    ):
        read(tmp_path / "objects.npy", cycle(20))


def test_a_huge_file_of_text_is_refused_unread(tmp_path):
    path = tmp_path / "labels.txt"
    with path.open("wb") as file:
        file.truncate(2**26 + 1)
    with pytest.raises(ValueError, match=r"labels\.txt has 67108865 bytes, at most 67108864 are"):
        read(path, cycle(20))


def test_a_named_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "labels.npy")
    with pytest.raises(ValueError, match=r"labels\.npy is no regular file"):
        read(tmp_path / "labels.npy", cycle(20))


# Files of a matrix


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
    found = transition_matrix(NoiseSpec(kind="matrix", path=path), "anything", 3)
    assert torch.equal(found, torch.from_numpy(matrix))


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.eye(9), r"\(10, 10\) matrix of numbers, got shape \(9, 9\)"),
        (np.eye(10) * 0.9, "row 0 must sum to 1, got 0.9"),
        (np.eye(10) * 2 - np.roll(np.eye(10), 1, 0), r"from 0 to 1, got 2\.0 in row 0, column 0"),
        (np.full((10, 10), np.nan), "from 0 to 1, got nan in row 0, column 0"),
    ],
)
def test_a_matrix_that_is_none_is_refused(tmp_path, matrix, message):
    np.save(tmp_path / "m.npy", matrix)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "m.npy", cycle(20), kind="matrix")


# Labels that come with the data


def test_labels_that_come_with_the_data_are_compared_with_the_clean_ones():
    clean, with_the_data = torch.tensor([0, 0, 1, 1, 1, 1]), torch.tensor([0, 1, 1, 1, 1, 2])
    noisy = realised(clean, with_the_data, 3)
    assert noisy.transition.tolist() == [[0.5, 0.5, 0.0], [0.0, 0.75, 0.25], [0.0, 0.0, 1.0]]
    assert noisy.rate == pytest.approx(2 / 6)
    with pytest.raises(ValueError, match="given labels must hold 6 labels"):
        realised(clean, with_the_data[:5], 3)
    with pytest.raises(ValueError, match=r"given labels must be in \[0, 2\), got 2"):
        realised(clean, with_the_data, 2)


def test_kinds_without_a_nominal_matrix_say_so():
    for text in ("human:worse_label", "file:labels.npy", "given"):
        with pytest.raises(ValueError, match="no nominal matrix"):
            transition_matrix(NoiseSpec.parse(text), "cifar10", 10)
