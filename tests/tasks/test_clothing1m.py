import pytest
import torch
from PIL import Image

from optuna_robustloss.tasks.clothing1m import CLASS_NAMES, load_clothing1m
from optuna_robustloss.tasks.data import load_data

NOISY = {f"images/0/{i}/{i},7.jpg": label for i, label in enumerate([3, 0, 13, 3, 5, 1])}
CLEAN = {f"images/1/{i}/{i}.jpg": label for i, label in enumerate([2, 12, 0, 4, 4])}
KEYS = {
    "noisy_train": [*NOISY][::-1],
    "clean_val": [*CLEAN][:2],
    "clean_test": [*CLEAN][2:],
}


def read(root):
    return load_clothing1m("clothing1m", root, False)


def write_text(folder):
    folder.mkdir(exist_ok=True)
    for kind, labels in (("noisy", NOISY), ("clean", CLEAN)):
        lines = "".join(f"{key} {label}\n" for key, label in labels.items())
        (folder / f"{kind}_label_kv.txt").write_text(lines)
    for listing, keys in KEYS.items():
        (folder / f"{listing}_key_list.txt").write_text("\n".join(keys) + "\n\n")


@pytest.fixture
def root(tmp_path):
    for index, key in enumerate([*NOISY, *CLEAN]):
        (tmp_path / key).parent.mkdir(parents=True)
        Image.new("RGB", (30, 20), (20 * index, 0, 0)).save(tmp_path / key)
    write_text(tmp_path)
    return tmp_path


def change_line(file, number, text):
    lines = file.read_text().splitlines()
    lines[number - 1] = text
    file.write_text("\n".join(lines) + "\n")


def test_listings_follow_the_key_files(root):
    data = read(root)
    assert data.train_noisy_labels.tolist() == [1, 5, 3, 13, 0, 3]
    assert data.validation_labels.tolist() == [2, 12]
    assert data.test_labels.tolist() == [0, 4, 4]
    assert data.test_labels.dtype == torch.int64


def test_text_files_may_stand_in_annotations(root):
    before = read(root)
    for file in root.glob("*.txt"):
        file.unlink()
    write_text(root / "annotations")
    after = read(root)
    assert len(after.train) == len(before.train)
    assert torch.equal(after.train_noisy_labels, before.train_noisy_labels)


def test_the_data_set_has_noisy_training_labels_only(root):
    data = load_data("clothing1m", root=root)
    assert data.num_classes == len(CLASS_NAMES) == len(data.class_names) == 14
    assert data.train_labels is None
    assert data.train_noisy_labels.tolist() == [1, 5, 3, 13, 0, 3]
    assert (len(data.train), len(data.validation), len(data.test)) == (6, 2, 3)
    assert data.validation_labels.tolist() == [2, 12]
    assert data.train.shape == (3, 224, 224)


def test_images_are_streamed_from_the_keys(root):
    data = load_data("clothing1m", root=root)
    data.test.num_workers = 0
    ((indices, images),) = data.test.batches(torch.tensor([2, 0]), 2, device=torch.device("cpu"))
    assert indices.tolist() == [2, 0]
    red = images[:, 0].mean((1, 2)) * 0.229 + 0.485
    # Written with the red value 20 * index: clean images 4 and 2 are the files 10 and 8.
    torch.testing.assert_close(red * 255, torch.tensor([200.0, 160.0]), atol=3, rtol=0)


def test_the_folder_may_stand_among_other_data_sets(root, tmp_path_factory):
    shared = tmp_path_factory.mktemp("shared")
    (shared / "clothing1m").symlink_to(root)
    assert len(load_data("clothing1m", root=shared).train) == 6


def test_missing_text_files_are_named(root):
    (root / "clean_val_key_list.txt").unlink()
    (root / "noisy_label_kv.txt").unlink()
    with pytest.raises(
        FileNotFoundError,
        match=r"noisy_label_kv\.txt, clean_val_key_list\.txt not found in .*root=",
    ):
        read(root)


def test_a_key_without_a_label_is_named(root):
    change_line(root / "noisy_train_key_list.txt", 2, "images/9/9/9.jpg")
    with pytest.raises(
        ValueError,
        match=r"noisy_train_key_list\.txt:2: key 'images/9/9/9\.jpg' has no label in noisy_label",
    ):
        read(root)


def test_validation_keys_need_clean_labels(root):
    change_line(root / "clean_val_key_list.txt", 1, next(iter(NOISY)))
    with pytest.raises(ValueError, match=r"clean_val_key_list\.txt:1: .* clean_label_kv\.txt"):
        read(root)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("images/1/2/2.jpg 14", r"clean_label_kv\.txt:3: label 14 .* is not in 0\.\.13"),
        ("images/1/2/2.jpg -1", r"clean_label_kv\.txt:3: expected 'key label', got .* -1'"),
        ("images/1/2/2.jpg Shawl", r"clean_label_kv\.txt:3: expected 'key label', got .*Shawl"),
        ("images/1/2/2.jpg", r"clean_label_kv\.txt:3: expected 'key label', got"),
        ("images/1/2/2.jpg " + "9" * 5000, r"clean_label_kv\.txt:3: is no line of text"),
        ("images/1/2/2.jpg " + "9" * 3000, r"clean_label_kv\.txt:3: label 9+ .* not in 0\.\.13"),
        ("images/1/2/2.jpg ²", r"clean_label_kv\.txt:3: expected 'key label', got"),
        ("images/1/1/1.jpg 3", r"clean_label_kv\.txt:3: .*1\.jpg' has the label 3 here and 12 ab"),
        ("images/\0.jpg 3", r"clean_label_kv\.txt:3: is no line of text"),
    ],
)
def test_a_bad_label_is_named_with_its_line(root, line, message):
    change_line(root / "clean_label_kv.txt", 3, line)
    with pytest.raises(ValueError, match=message):
        read(root)


def test_a_missing_image_is_named_with_its_line(root):
    (root / KEYS["noisy_train"][1]).unlink()
    with pytest.raises(
        FileNotFoundError, match=r"noisy_train_key_list\.txt:2: image .*4,7\.jpg does not exist"
    ):
        read(root)


def test_a_key_outside_the_folder_is_refused(root):
    for key in ("../secret.jpg", "/etc/secret.jpg"):
        (root / "clean_label_kv.txt").write_text(f"{key} 3\n")
        (root / "clean_val_key_list.txt").write_text(f"{key}\n")
        with pytest.raises(ValueError, match=r"clean_val_key_list\.txt:1: key .* leads out of"):
            read(root)


def test_a_list_that_is_no_text_is_refused(root):
    (root / "clean_test_key_list.txt").write_bytes(b"images/\xff.jpg\n")
    with pytest.raises(ValueError, match=r"clean_test_key_list\.txt:1: must be UTF-8 text"):
        read(root)


def test_an_empty_listing_is_refused(root):
    (root / "clean_test_key_list.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"clean_test_key_list\.txt: holds no keys"):
        read(root)
