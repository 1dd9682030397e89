"""Loss files and names from anywhere: a loss, or one error of one line that names its cause."""

import copy
import json
import os

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from losses.conftest import phased, taylor
from optuna_robustloss.losses import ANLCELoss, SCELoss, list_methods, load_loss, make_loss
from optuna_robustloss.losses.json_files import MAX_BYTES
from optuna_robustloss.losses.serialization import CLASSES, FORMAT, VERSION, describe_loss

EXAMPLES = [
    {"format": FORMAT, "version": VERSION} | describe_loss(loss)
    for loss in (taylor(), phased(total_steps=9), ANLCELoss(), SCELoss(A="code"))
]
numbers = st.one_of(
    st.integers(-(10**30), 10**30),
    st.floats(),
    st.sampled_from([0, -1, 1e39, -1e308, 1e308, 5e-324, 10**400, 10**9, 2**63, True, None]),
)
texts = st.one_of(
    st.text(max_size=20),
    st.sampled_from(["x" * 9999, "\x1b[31m", "\n\n", "\ud800", "log", "probability", *CLASSES]),
)
values = st.recursive(
    numbers | texts,
    lambda inner: st.lists(inner, max_size=13) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=15,
)


@st.composite
def descriptions(draw):
    """A valid description in which a few places hold something else."""
    found = copy.deepcopy(draw(st.sampled_from(EXAMPLES)))
    for _ in range(draw(st.integers(1, 3))):
        place = found
        while True:
            keys = range(len(place)) if isinstance(place, list) else sorted(place)
            key = draw(st.sampled_from([*keys, "new"] if isinstance(place, dict) else [*keys]))
            inside = place[key] if key != "new" else None
            if isinstance(inside, dict | list) and inside and draw(st.booleans()):
                place = inside
            else:
                break
        if key == "new":
            place[draw(texts)] = draw(values)
        elif draw(st.integers(0, 4)) and isinstance(place, dict):
            place[key] = draw(values)
        else:
            del place[key]
            if not place:
                break
    return json.dumps(found).encode()


contents = st.one_of(
    descriptions(),
    st.binary(max_size=60),
    values.map(lambda value: json.dumps(value).encode()),
    st.integers(0, 400).map(lambda size: json.dumps(EXAMPLES[1]).encode()[:size]),
    st.sampled_from(["utf-16", "utf-32", "latin-1"]).map(
        lambda name: json.dumps(EXAMPLES[0] | {"by": "é"}, ensure_ascii=False).encode(name)
    ),
)


def check_error(error, name):
    text = str(error)
    assert name in text
    assert text.isprintable()
    assert len(text) < 1500


def check_file(path, content):
    path.write_bytes(content)
    try:
        loss = load_loss(path)
    except ValueError as error:
        check_error(error, path.name)
    else:
        classes = getattr(loss, "num_classes", 10)
        if classes <= 1000:
            loss.eval()(torch.zeros(2, classes), torch.tensor([0, 1]))


def check_name(name):
    try:
        assert isinstance(make_loss(name, 10), nn.Module)
    except (ValueError, FileNotFoundError) as error:
        check_error(error, "")


names = st.lists(
    st.one_of(
        st.sampled_from([*list_methods(), "mse", "*", "@", "0.5", "nan", "inf", "1e400", ".json"]),
        st.sampled_from(["1e39", "-0.0", "x" * 300, "/", "..", "\x00", "*1" * 3000, "١"]),
        st.text(max_size=5),
    ),
    max_size=5,
).map("".join)

quick = settings(
    max_examples=300, deadline=None, suppress_health_check=[*HealthCheck], derandomize=True
)
long = settings(quick, max_examples=3000, derandomize=False)


@quick
@given(content=contents)
def test_files(tmp_path, content):
    check_file(tmp_path / "loss.json", content)


@quick
@given(name=names)
def test_names(name):
    check_name(name)


@pytest.mark.slow
@long
@given(content=contents)
def test_many_files(tmp_path, content):
    check_file(tmp_path / "loss.json", content)


@pytest.mark.slow
@long
@given(name=names)
def test_many_names(name):
    check_name(name)


# --- What hypothesis does not find by itself ---


def nested(depth):
    text = json.dumps(describe_loss(ANLCELoss()))
    for _ in range(depth):
        text = f'{{"class": "ScaledLoss", "scale": 1.0, "criterion": {text}}}'
    return text.replace("{", f'{{"format": "{FORMAT}", "version": {VERSION}, ', 1)


def test_hostile_files(tmp_path):
    path, whole = tmp_path / "loss.json", json.dumps(EXAMPLES[0])
    for content, message in (
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        (nested(900), "nested too deeply"),
        (nested(50), "nested too deeply: at most 10 losses"),
        (whole.replace("{", '{"eta": 1.0, ', 1), "the key 'eta' is given twice"),
        (whole.replace('"num_classes": 10', '"num_classes": 1000000000'), "at most 1000000, got"),
        (whole.replace('"eta": 0.63', '"eta": 1e39'), "eta of TaylorLoss must be a finite number"),
        (json.dumps(EXAMPLES[0] | {"eta": 3e38}), "coefficients beyond float32"),
        (json.dumps(EXAMPLES[0] | {"provenance": {"score": float("nan")}}), "not finite"),
        (json.dumps(EXAMPLES[0] | {"version": True}), "version True"),
        ("x" * (MAX_BYTES + 1), f"has {MAX_BYTES + 1} bytes, a loss file at most"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=message) as error:
            load_loss(path)
        check_error(error.value, "loss.json")


def test_a_byte_order_mark_is_left_out(tmp_path):
    path = tmp_path / "loss.json"
    path.write_text(json.dumps(EXAMPLES[0]), encoding="utf-8-sig")
    assert load_loss(path).eta == 0.63


def test_what_is_no_regular_file(tmp_path):
    os.mkfifo(tmp_path / "fifo.json")
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "loop.json").symlink_to(tmp_path / "loop.json")
    for name, message in (
        ("fifo.json", "not a regular file"),
        ("folder.json", "not a regular file"),
        ("loop.json", "cannot be read"),
        ("x" * 300 + ".json", "cannot be read: File name too long"),
        ("a\0b.json", "cannot be read: embedded null byte"),
        ("\ud800.json", "cannot be read"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
            load_loss(str(tmp_path / name))
        check_error(error.value, "")


def test_an_at_sign_in_a_path(tmp_path):
    path = tmp_path / "me@home" / "mine@work.json"
    path.parent.mkdir()
    path.write_text(json.dumps(EXAMPLES[0]))
    for name in (str(path), path):
        assert load_loss(name).eta == 0.63
    assert make_loss(str(path), 10).eta == 0.63
    assert make_loss(f"{path}*0.5", 10).scale == 0.5


def test_scales_are_multiplied():
    assert make_loss("ce*0.5*0.5", 10).scale == 0.25
    assert make_loss("ce" + "*1" * 5000, 10).scale == 1
    for name, message in (
        ("ce*nan", "scale must be a positive number, got nan"),
        ("ce*1e400", "scale must be a positive number, got inf"),
        ("ce*1e20*1e20", "scale must be a positive number, got 1e\\+40"),
        ("mae@1e39", "eta must be a positive number, got 1e\\+39"),
    ):
        with pytest.raises(ValueError, match=message):
            make_loss(name, 10)
