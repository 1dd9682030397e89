"""Damaged, hostile and careless data: every input is read, or refused in one message."""

import io
import os
import shutil
import zipfile
from contextlib import contextmanager
from itertools import count

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from optuna_robustloss.tasks.clothing1m import load_clothing1m
from optuna_robustloss.tasks.data import load_data
from optuna_robustloss.tasks.folder import load_folder
from optuna_robustloss.tasks.image_files import read_image
from optuna_robustloss.tasks.images import DataSet
from optuna_robustloss.tasks.noise import corrupt, transition_matrix
from optuna_robustloss.tasks.recipes import Recipe
from optuna_robustloss.tasks.spec import NoiseSpec, TaskSpec

CLEAN = torch.arange(12) % 4
NUMBERS = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True),
    st.integers(-(2**70), 2**70),
    st.sampled_from([0, -1, 1e-60, 1e40, 1e308, "nan", "inf", "1e40", True, None, "", []]),
)
DTYPES = ["|u1", "<i8", ">i4", "<f4", "<f8", "|b1", "<c8", "|O", "<U3", "<M8[s]", "|V5", "<u8"]


def bytes_of(save, *arguments, **options):
    file = io.BytesIO()
    save(file, *arguments, **options)
    return file.getvalue()


@st.composite
def damaged(draw, whole):
    """Some bytes with a few changed, cut off, or put in between."""
    content = bytearray(draw(st.sampled_from(whole)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        kind = draw(st.sampled_from(["set", "fill", "cut", "insert", "remove"]))
        if kind == "set":
            content[at : at + 1] = bytes([draw(st.integers(0, 255))])
        elif kind == "fill":
            length = draw(st.integers(1, 60))
            content[at : at + length] = draw(st.sampled_from([b"\xff", b"\0"])) * length
        elif kind == "cut":
            del content[at:]
        elif kind == "insert":
            content[at:at] = draw(st.binary(max_size=8))
        else:
            del content[at : at + draw(st.integers(1, 30))]
    return bytes(content)


@contextmanager
def refused_at_most(*parts):
    """Let a good input through; a bad one must have a message of a line or two with ``parts``."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        text = str(error)
        if len(text) > 1500 or not all(part in text for part in parts):
            raise AssertionError(f"the message must name {parts}") from error


# The kinds


ARRAYS = {
    "x_train": np.random.default_rng(0).integers(0, 9, (12, 5, 5), dtype=np.uint8),
    "y_train": np.arange(12) % 4,
    "x_test": np.zeros((4, 5, 5), np.uint8),
    "y_test": np.arange(4),
}
COUNTER = count()
ARCHIVES = [bytes_of(np.savez, **ARRAYS), bytes_of(np.savez_compressed, **ARRAYS)]


def check_archive(draw, folder):
    path = folder / f"own{next(COUNTER)}.npz"  # a data set is loaded once in a process
    path.write_bytes(draw(damaged(ARCHIVES)))
    with refused_at_most(str(path)):
        assert len(load_data(str(path)).train) == 12


@st.composite
def npy_files(draw):
    """A .npy file whose header need not say the truth."""
    shape = tuple(draw(st.lists(st.sampled_from([0, 1, 4, 12, -1, 10**12, 10**30]), max_size=4)))
    header = {
        "descr": draw(st.sampled_from([*DTYPES, "nonsense", [("a", "<i8")], 3])),
        "fortran_order": draw(st.sampled_from([False, True, 0, "no"])),
        "shape": draw(st.sampled_from([shape, (12,), (4, 4), list(shape), "12"])),
    }
    text = draw(st.sampled_from([repr(header), "{", "(" * 200, repr(header)[:-3]])).encode()
    version = draw(st.sampled_from([b"\1\0", b"\2\0", b"\3\0", b"\x09\x09"]))
    length = len(text).to_bytes(2 if version == b"\1\0" else 4, "little")
    values = draw(st.sampled_from([bytes(12), CLEAN.numpy().tobytes(), np.eye(4).tobytes(), b""]))
    return b"\x93NUMPY" + version + length + text + values


def check_array(draw, folder):
    kind = draw(st.sampled_from(["file", "matrix"]))
    good = [bytes_of(np.save, CLEAN.numpy()), bytes_of(np.save, np.eye(4))]
    content = draw(st.one_of(npy_files(), damaged(good)))
    suffix = draw(st.sampled_from([".npy", ".npz"]))
    path = folder / f"one{suffix}"
    if suffix == ".npz":
        with zipfile.ZipFile(path, "w", draw(st.sampled_from([0, 8, 12, 14]))) as archive:
            archive.writestr("one.npy", content)
    else:
        path.write_bytes(content)
    check_noise(kind, path)


def check_noise(kind, path):
    spec = NoiseSpec(kind=kind, path=path)
    with refused_at_most(str(path)):
        if kind == "matrix":
            assert torch.isfinite(transition_matrix(spec, "own", 4)).all()
        else:
            assert len(corrupt(spec, CLEAN, 4, dataset="own", seed=0).labels) == 12


WORDS = st.sampled_from(["0", "1", "3", "1.5", "nan", "-1", "inf", "1e999", "ä", "#", ",", "\0"])


def check_text(draw, folder):
    path = folder / f"one{draw(st.sampled_from(['.txt', '.csv']))}"
    rows = draw(st.lists(st.lists(WORDS, max_size=5), max_size=14))
    content = "\n".join(draw(st.sampled_from([" ", ","])).join(row) for row in rows).encode()
    path.write_bytes(draw(st.one_of(st.just(content), st.binary(max_size=40))))
    check_noise(draw(st.sampled_from(["file", "matrix"])), path)


HUMAN = [bytes_of(lambda f, a: torch.save(a, f), {"worse_label": CLEAN.numpy()})]


def check_torch_file(draw, folder):
    path = folder / "CIFAR-10_human.pt"
    path.write_bytes(draw(damaged(HUMAN)))
    spec = NoiseSpec(kind="human", name="worse_label", path=path)
    with refused_at_most(str(path)):
        assert len(corrupt(spec, CLEAN, 10, dataset="cifar10", seed=0).labels) == 12


def saved(mode, kind, **options):
    image = Image.new(mode, (9, 7), 0.5 if mode == "F" else None)
    return bytes_of(image.save, kind, **options)


ROTATED = Image.Exif()
ROTATED[0x0112] = 6
IMAGES = [
    *(saved(mode, "PNG") for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
    *(saved(mode, "TIFF") for mode in ("L", "RGB", "F", "I", "I;16", "CMYK", "LAB")),
    *(saved(mode, "JPEG", exif=ROTATED) for mode in ("L", "RGB", "CMYK")),
    *(saved("RGB", kind) for kind in ("BMP", "GIF", "PPM", "WEBP")),
]


def check_image(draw, folder):
    path = str(folder / "one.png")
    with open(path, "wb") as file:
        file.write(draw(st.one_of(damaged(IMAGES), st.sampled_from(IMAGES))))
    with refused_at_most(path):
        assert read_image(path).mode == "RGB"


NAMES = st.sampled_from(["a", "b", "B", "é", ".hidden", "._a.png", "a.png", "b.JPG", "c.txt", "📷"])


def check_folder(draw, folder):
    root = folder / "images"
    shutil.rmtree(root, ignore_errors=True)
    for split in ("train", "test"):
        for name in draw(st.lists(NAMES, max_size=3, unique=True)):
            (root / split / name).mkdir(parents=True)
            for entry in draw(st.lists(NAMES, max_size=3, unique=True)):
                make_entry(draw, root / split / name / entry)
    with refused_at_most(str(root)):
        data = load_folder(f"folder:{root}", folder, False)
        assert not any(name.startswith(".") for name in data.class_names)
        assert len(data.train) == len(data.train_labels) >= data.num_classes


def make_entry(draw, path):
    kind = draw(st.sampled_from(["file"] * 4 + ["fifo", "folder", "up", "broken", "itself"]))
    if kind == "file":
        path.write_bytes(b"")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to({"up": "..", "broken": "nowhere", "itself": path.name}[kind])


LINES = st.lists(
    st.sampled_from(
        "images/0.jpg|images/0.jpg 3|images/0.jpg 13|images/0.jpg 14|images/0.jpg -1|"
        "images/0.jpg 3.0||  |a b c|/etc/passwd 1|../x 1|é 1".split("|")
    ),
    max_size=3,
)


def check_clothing1m(draw, folder):
    (folder / "images").mkdir(exist_ok=True)
    (folder / "images" / "0.jpg").write_bytes(b"")
    for name in ("noisy_train_key_list", "clean_val_key_list", "clean_test_key_list"):
        (folder / f"{name}.txt").write_text("\n".join(draw(LINES) or ["images/0.jpg"]))
    for name in ("noisy_label_kv", "clean_label_kv"):
        end = draw(st.sampled_from([b"", b"\xff", b"\0"]))
        text = "\n".join(draw(LINES) or ["images/0.jpg 1"])
        (folder / f"{name}.txt").write_bytes(text.encode() + end)
    with refused_at_most(str(folder), ".txt"):
        assert isinstance(load_clothing1m("clothing1m", folder, False), DataSet)


def check_recipe(draw, folder):
    fields = draw(st.dictionaries(st.sampled_from([*Recipe.model_fields]), NUMBERS, max_size=4))
    try:
        recipe = TaskSpec.parse("mnist,resnet18", recipe=fields).recipe
    except ValidationError:
        return
    numbers = torch.tensor([recipe.lr, recipe.lr_at(0.999), recipe.weight_decay])
    assert torch.isfinite(numbers).all()
    assert numbers[0] > 0
    assert 1 <= recipe.epochs <= 100_000


def check_noise_text(draw, folder):
    kind = draw(st.sampled_from(["none", "symmetric", "asymmetric-blocks", "human", "matrix", ""]))
    text = draw(st.one_of(st.text("a0.:/\\é\0 ", max_size=12), NUMBERS.map(str)))
    try:
        spec = NoiseSpec.parse(f"{kind}:{text}")
    except ValidationError:
        return
    assert 0 <= spec.rate <= 1
    assert NoiseSpec.model_validate(spec.model_dump()) == spec


CHECKS = [
    check_archive,
    check_array,
    check_text,
    check_torch_file,
    check_image,
    check_folder,
    check_clothing1m,
    check_recipe,
    check_noise_text,
]


def run(check, folder, examples):
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def fuzzed(data):
        check(data.draw, folder)

    fuzzed()


@pytest.mark.parametrize("check", CHECKS)
def test_bad_data_is_refused_in_one_message(check, tmp_path):
    run(check, tmp_path, 50)


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS)
def test_much_bad_data_is_refused_in_one_message(check, tmp_path):
    run(check, tmp_path, 1000)
