import os
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from optuna_robustloss.tasks.data import load_data
from optuna_robustloss.tasks.noise import corrupt
from optuna_robustloss.tasks.prepare import prepare_task
from optuna_robustloss.tasks.spec import TaskSpec

SPEC = TaskSpec.parse("digits,mlp2,symmetric:0.6", train=800, validation=300)
GOLDEN = [2146185940, 834521601, 985862082]  # seed 7


def checksums(task):
    """What is random in a task: the labels, then which images are for training and validation."""
    parts = (task.train.labels, task.train.index, task.validation.index)
    return [zlib.crc32(part.numpy().tobytes()) for part in parts]


def indices(part):
    return set(part.index.tolist())


@pytest.fixture
def npz(tmp_path):
    """Return a function that writes 30 images of 3 classes and names the file."""

    def write(**more):
        draws = np.random.default_rng(0)
        arrays = {
            "x_train": draws.integers(0, 256, (30, 4, 4), dtype=np.uint8),
            "y_train": np.arange(30) % 3,
            "x_test": draws.integers(0, 256, (6, 4, 4), dtype=np.uint8),
            "y_test": np.arange(6) % 3,
        }
        path = tmp_path / "set.npz"
        np.savez(path, **arrays | more)
        return str(path)

    return write


@pytest.fixture
def clothing1m(tmp_path):
    """The listings and files of 6 noisy training, 4 clean validation and 3 clean test images."""
    noisy = {f"images/0/{i}.jpg": label for i, label in enumerate([3, 0, 13, 3, 5, 1])}
    clean = {f"images/1/{i}.jpg": label for i, label in enumerate([2, 12, 0, 4, 4, 7, 9])}
    lists = {"noisy_train": [*noisy], "clean_val": [*clean][:4], "clean_test": [*clean][4:]}
    for key in (*noisy, *clean):
        (tmp_path / key).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / key)
    for kind, labels in (("noisy", noisy), ("clean", clean)):
        lines = [f"{key} {label}" for key, label in labels.items()]
        (tmp_path / f"{kind}_label_kv.txt").write_text("\n".join(lines))
    for name, keys in lists.items():
        (tmp_path / f"{name}_key_list.txt").write_text("\n".join(keys))
    return tmp_path


# The split


def test_training_and_validation_images_are_different_images_of_the_training_set():
    task, data = prepare_task(SPEC, seed=0), load_data("digits")
    assert task.train.images is task.validation.images is data.train
    assert len(indices(task.train)) == len(task.train) == 800
    assert len(indices(task.validation)) == len(task.validation) == 300
    assert not indices(task.train) & indices(task.validation)


def test_test_images_are_the_whole_test_set_with_its_clean_labels():
    task, data = prepare_task(SPEC, seed=0), load_data("digits")
    assert task.test.images is data.test
    assert task.test.index.tolist() == list(range(500))
    assert torch.equal(task.test.labels, data.test_labels)


def test_by_default_all_that_validation_leaves_is_trained_on():
    task = prepare_task(TaskSpec.parse("digits,mlp2", validation=97), seed=0)
    assert len(task.train) == 1200
    assert indices(task.train) | indices(task.validation) == set(range(1297))


def test_without_validation_there_are_no_validation_images():
    task = prepare_task(TaskSpec.parse("digits,mlp2"), seed=0)
    assert (len(task.train), len(task.validation)) == (1297, 0)


def test_fewer_training_images_are_some_of_the_many_and_leave_validation_as_it_was():
    many = prepare_task(SPEC, seed=0)
    few = prepare_task(SPEC.model_copy(update={"train": 50}), seed=0)
    assert len(few.train) == 50
    assert indices(few.train) < indices(many.train)
    assert torch.equal(few.validation.index, many.validation.index)
    assert torch.equal(few.train.labels, many.train.labels)


def test_more_images_than_there_are_is_one_clear_error():
    for sizes, asked in [
        ({"train": 1298}, "1298 for training and 0 for validation"),
        ({"train": 1000, "validation": 298}, "1000 for training and 298 for validation"),
        ({"validation": 1297}, "some for training and 1297 for validation"),
        ({"validation": 5000}, "some for training and 5000 for validation"),
    ]:
        message = f"'digits' has 1297 training images: {asked} do not fit; lower 'train' or 'valid"
        with pytest.raises(ValueError, match=message):
            prepare_task(TaskSpec.parse("digits,mlp2", **sizes), seed=0)


def test_the_last_image_may_be_used():
    task = prepare_task(TaskSpec.parse("digits,mlp2", train=1000, validation=297), seed=0)
    assert (len(task.train), len(task.validation)) == (1000, 297)


def test_a_task_knows_its_classes_and_the_shape_of_its_images():
    task = prepare_task(SPEC, seed=0)
    assert (task.num_classes, task.image_shape) == (10, (1, 8, 8))


# The labels


def test_training_labels_are_noisy_and_validation_labels_clean():
    task, clean = prepare_task(SPEC, seed=0), load_data("digits").train_labels
    assert torch.equal(task.validation.labels, clean)
    assert torch.equal(task.clean_train_labels, clean)
    wrong = (task.train.labels != clean)[task.train.index].double().mean().item()
    assert wrong == pytest.approx(0.6, abs=0.07)  # 4 standard deviations of 800 draws


def test_the_realised_noise_is_that_of_the_whole_training_set():
    task, clean = prepare_task(SPEC, seed=0), load_data("digits").train_labels
    assert torch.equal(task.noise.labels, task.train.labels)
    assert task.noise.rate == (task.train.labels != clean).double().mean().item()


def test_validation_labels_may_be_noisy_too():
    spec = SPEC.model_copy(update={"validation_labels": "noisy"})
    task, other = prepare_task(spec, seed=0), prepare_task(SPEC, seed=0)
    assert torch.equal(task.validation.labels, task.train.labels)
    assert torch.equal(task.validation.index, other.validation.index)
    assert torch.equal(task.test.labels, other.test.labels)


def test_the_split_does_not_know_which_labels_are_wrong():
    tasks = [prepare_task(SPEC, seed=seed) for seed in range(20)]
    wrong = [
        (task.train.labels != task.clean_train_labels)[task.validation.index].double().mean()
        for task in tasks
    ]
    assert torch.stack(wrong).mean().item() == pytest.approx(0.6, abs=0.025)


def test_the_clean_labels_of_the_data_set_stay_clean():
    before = load_data("digits").train_labels.clone()
    prepare_task(SPEC, seed=0)
    assert torch.equal(load_data("digits").train_labels, before)


# The seed


def test_the_same_seed_gives_the_same_task_and_another_seed_another():
    first, again, other = (checksums(prepare_task(SPEC, seed=seed)) for seed in (0, 0, 1))
    assert first == again
    assert all(a != b for a, b in zip(first, other, strict=True))


def test_golden_task_is_the_same_on_every_host():
    assert checksums(prepare_task(SPEC, seed=7)) == GOLDEN


@pytest.mark.slow
def test_the_same_seed_gives_the_same_task_in_another_process():
    program = (
        "import zlib; from optuna_robustloss.tasks.prepare import prepare_task as prepare;"
        "from optuna_robustloss.tasks.spec import TaskSpec;"
        "spec = TaskSpec.parse('digits,mlp2,symmetric:0.6', train=800, validation=300);"
        "task = prepare(spec, seed=3);"
        "parts = (task.train.labels, task.train.index, task.validation.index);"
        "print([zlib.crc32(part.numpy().tobytes()) for part in parts])"
    )
    environment = os.environ | {"PYTHONHASHSEED": "123", "OMP_NUM_THREADS": "1"}
    answer = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == str(checksums(prepare_task(SPEC, seed=3)))


def test_the_global_random_numbers_neither_matter_nor_change():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = checksums(prepare_task(SPEC, seed=0))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert checksums(prepare_task(SPEC, seed=0)) == first


# Labels that come with the data


def test_given_noise_takes_the_noisy_labels_of_the_data(npz):
    noisy = (np.arange(30) + (np.arange(30) < 12)) % 3
    spec = TaskSpec.parse(f"{npz(y_train_noisy=noisy)},mlp2,given", validation=10)
    task = prepare_task(spec, seed=0)
    assert task.train.labels.tolist() == noisy.tolist()
    assert task.validation.labels.tolist() == (np.arange(30) % 3).tolist()
    assert task.noise.rate == pytest.approx(12 / 30)


def test_given_noise_needs_noisy_labels(npz):
    with pytest.raises(ValueError, match=r"needs labels that come noisy.* has none: choose anoth"):
        prepare_task(TaskSpec.parse(f"{npz()},mlp2,given"), seed=0)


def test_drawn_noise_starts_from_the_clean_labels_of_the_data(npz):
    name = npz(y_train_noisy=np.zeros(30, dtype=np.int64))
    spec = TaskSpec.parse(f"{name},mlp2,symmetric:0")
    assert prepare_task(spec, seed=0).train.labels.tolist() == (np.arange(30) % 3).tolist()


def test_noise_of_one_task_is_that_of_the_noise_model_alone(npz):
    spec = TaskSpec.parse(f"{npz()},mlp2,pair-flip:1")
    task = prepare_task(spec, seed=0)
    clean = torch.arange(30) % 3
    alone = corrupt(spec.noise, clean, 3, dataset=spec.dataset, seed=99)  # rate 1: no chance left
    assert torch.equal(task.train.labels, alone.labels)


def test_unknown_clean_labels_are_validated_on_own_validation_images(clothing1m):
    spec = TaskSpec.parse("clothing1m,torchvision/resnet18,given", validation=3)
    task, data = (
        prepare_task(spec, seed=0, root=clothing1m),
        load_data("clothing1m", root=clothing1m),
    )
    assert task.validation.images is data.validation
    assert len(indices(task.validation)) == 3
    assert task.validation.labels.tolist() == [2, 12, 0, 4]
    assert len(task.train) == 6  # validation takes nothing from training
    assert task.train.labels.tolist() == [3, 0, 13, 3, 5, 1]
    assert task.clean_train_labels is None
    assert task.noise is None


def test_own_validation_images_are_limited(clothing1m):
    spec = TaskSpec.parse("clothing1m,torchvision/resnet18,given", validation=5)
    with pytest.raises(ValueError, match="has 4 validation images, not 5: lower 'validation'"):
        prepare_task(spec, seed=0, root=clothing1m)


def test_noisy_validation_takes_training_images_even_beside_own_validation_images(clothing1m):
    spec = TaskSpec.parse(
        "clothing1m,torchvision/resnet18,given", validation=2, validation_labels="noisy"
    )
    task = prepare_task(spec, seed=0, root=clothing1m)
    assert task.validation.images is task.train.images
    assert (len(task.train), len(task.validation)) == (4, 2)
    assert not indices(task.train) & indices(task.validation)


@pytest.mark.parametrize("noise", ["none", "symmetric:0.4"])
def test_noise_is_not_drawn_from_unknown_clean_labels(clothing1m, noise):
    spec = TaskSpec.parse(f"clothing1m,torchvision/resnet18,{noise}", validation=2)
    with pytest.raises(ValueError, match=r"come noisy: set noise to 'given', not"):
        prepare_task(spec, seed=0, root=clothing1m)
