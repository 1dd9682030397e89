"""What a study spec refuses, in one line that names the key, and what it warns of."""

import warnings

import pytest

from optuna_robustloss.search.spec import StudySpec

MINIMAL = {
    "name": "small",
    "datasets": ["digits"],
    "architectures": ["mlp2"],
    "noise": "symmetric:0.4",
}
RATE = {"kind": "symmetric", "rate": 0.4}


def spec(**changes):
    return StudySpec.from_values(MINIMAL | changes, "study.yaml")


def message(**changes):
    with pytest.raises(ValueError, match=r"^study\.yaml: ") as error:
        spec(**changes)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_an_unknown_key_is_named_with_all_known_ones():
    text = message(epochs=3)
    assert "unknown key 'epochs'; known keys: " in text
    assert all(key in text for key in StudySpec.model_fields)


def test_an_unknown_key_of_the_recipe_is_named_with_its_known_ones():
    text = message(recipe={"epoch": 3})
    assert "recipe: unknown key 'epoch'; known keys: optimizer, lr, batch_size, epochs," in text
    assert "datasets" not in text


def test_a_missing_key_is_named():
    with pytest.raises(ValueError, match=r"study\.yaml: datasets: Field required$"):
        StudySpec.from_values({k: v for k, v in MINIMAL.items() if k != "datasets"}, "study.yaml")


WRONG = [
    ("noise", "symetric:0.8", ["noise.0.kind", "'symmetric'", "'symetric'"]),
    ("noise", "symmetric", ["noise", "needs a rate"]),
    ("noise", {"kind": "symmetric", "rte": 0.4}, ["unknown key 'noise.0.rte'"]),
    ("noise", [], ["noise", "at least 1 item"]),
    ("architectures", ["mlp4"], ["unknown network 'mlp4'", "close: ", "mlp2", "mlp3"]),
    ("datasets", ["mnits"], ["unknown data set 'mnits'", "'mnist'"]),
    ("recipe", {"lr": -1}, ["lr", "greater than or equal to", "-1"]),
    ("recipe", {"schedule": "step", "milestones": [0.5]}, ["schedule 'step'"]),
    ("validation", 99, ["validation", "greater than or equal to 100", "99"]),
    ("validation_labels", "dirty", ["validation_labels", "'clean' or 'noisy'"]),
    ("train", 0, ["train", "greater than or equal to 1"]),
    ("horizons", [1, 0], ["horizons are positive multiples", "0.0"]),
    ("horizons", [-1], ["horizons are positive multiples"]),
    ("horizons", float("inf"), ["horizons are positive multiples", "inf"]),
    ("horizons", float("nan"), ["horizons are positive multiples", "nan"]),
    ("score", "mean", ["score", "'last' or 'best'"]),
    ("popsize", 1, ["popsize", "greater than or equal to 4"]),
    ("generations", 0, ["generations", "greater than or equal to 1"]),
    ("eta", [4, 0.04], ["eta: expected a number, above 0, or a range", "[4, 0.04]"]),
    ("eta", 0, ["eta: expected a number, above 0, or a range", "(got 0)"]),
    ("hopeless_after", 0.07, ["'hopeless_after' is now 'stop_at_chance_after'"]),
    ("rungs", 0.5, ["'rungs' is now 'prune_at'"]),
    ("start", "sce", ["set cross_entropy_weight"]),
    ("half_width", 0, ["half_width", "greater than or equal to"]),
    ("finalist_seeds", 2, ["finalist_seeds", "greater than or equal to 3"]),
    ("name", "", ["name", "1 to 512 printable characters"]),
    ("name", "a\x1b[2J", ["name", "printable characters"]),
    ("name", "a\n", ["name", "printable characters"]),
    ("name", "a" * 10_000, ["name", "1 to 512 printable"]),
    ("popsize", 10**9, ["popsize", "less than or equal to 10000", "1000000000"]),
    ("popsize", True, ["popsize", "not true or false"]),
    ("generations", 10**9, ["generations", "less than or equal to 1000000"]),
    ("finalist_seeds", 10**9, ["finalist_seeds", "less than or equal to 1000"]),
    ("sigma0", float("nan"), ["sigma0", "less than or equal to", "nan"]),
    ("sigma0", 1e300, ["sigma0", "less than or equal to"]),
    ("sigma0", True, ["sigma0", "not true or false"]),
    ("eta", [1, 1e39], ["eta: expected a number", "between 1e-09 and 1e+09"]),
    ("eta", [1, True], ["eta", "not true or false"]),
    ("eta", [1, 2, 3], ["eta", "[1, 2, 3]"]),
    ("eta", float("nan"), ["eta: expected a number", "nan"]),
    ("half_width", 1e300, ["half_width", "less than or equal to"]),
    ("horizons", [1e300], ["horizons are positive multiples of the epochs, at most 1000"]),
    ("horizons", [], ["horizons", "at least 1 item"]),
    ("datasets", [], ["datasets", "at least 1 item"]),
    ("datasets", ["digits", "digits"], ["the task digits/mlp2/symmetric 40 % is there twice"]),
    ("noise", ["symmetric:0.4", RATE], ["the task digits/mlp2/symmetric 40 % is there twice"]),
    ("prune_at", [1.5], ["trains 1 for a candidate"]),
    ("prune_at", [float("nan")], ["trains 1 for a candidate"]),
    ("recipe", {"epochs": True}, ["epochs", "not true or false"]),
    ("source_studies", [{"study": ""}], ["source_studies.0.study"]),
]


def test_a_wrong_value_is_named_with_what_is_allowed():
    for key, value, parts in WRONG:
        text = message(**{key: value})
        assert all(part in text for part in parts), text


def test_every_wrong_value_is_named_at_once():
    text = message(popsize=1, seed=-1, colour="red")
    assert all(part in text for part in ("popsize", "seed", "unknown key 'colour'"))


@pytest.mark.parametrize("text", ["", "- name: a\n", "just text\n", "3\n"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path, text):
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"study\.yaml: a study spec is a mapping"):
        StudySpec.from_yaml(path)


@pytest.mark.parametrize("content", [b"name: [unclosed", b"\xff\xfe\x00", b"a: b: c"])
def test_a_file_that_is_not_yaml_is_refused(tmp_path, content):
    path = tmp_path / "study.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"study\.yaml is not YAML"):
        StudySpec.from_yaml(path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no study spec .*none\.yaml"):
        StudySpec.from_yaml(tmp_path / "none.yaml")


# --- Noisy validation labels ---


def test_noisy_labels_that_rank_losses_unreliably_raise_a_warning():
    for noise, validation, warning in [
        ("asymmetric:0.4", 5000, "asymmetric 40 %.*200 clean labels"),
        (["symmetric:0.4", "pair-flip:0.4"], 5000, "under pair-flip 40 %"),
        ("symmetric:0.4", 1999, "validates on 1999 noisy labels.*2 000"),
    ]:
        with pytest.warns(UserWarning, match=warning):
            spec(noise=noise, validation=validation, validation_labels="noisy")


ADAM = {"recipe": {"optimizer": "adam", "momentum": 0}}


def test_a_searched_eta_under_adam_raises_a_warning_that_names_the_networks():
    where = r"searches eta, .* no effect on mlp2 on digits \(adam\).*optimizer: sgd"
    with pytest.warns(UserWarning, match=where):
        spec(eta=[1, 10], **ADAM)
    with pytest.warns(UserWarning, match=r"searches eta and late_eta,"):
        spec(phases=2, eta=[1, 10], late_eta=[1, 2], **ADAM)
    decayed = {"recipe": ADAM["recipe"] | {"weight_decay": 1e-3}}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for quiet in ({"eta": [1, 10]}, ADAM, {"eta": [1, 10], **decayed}):
            spec(**quiet)
        spec(eta=[1, 10], cross_entropy_weight=0.1, **ADAM)


def test_labels_that_rank_losses_raise_no_warning():
    for changes in [
        {"noise": "asymmetric:0.4", "validation": 100},
        {"noise": "symmetric:0.4", "validation": 2000, "validation_labels": "noisy"},
    ]:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            spec(**changes)


# --- Options that depend on each other ---


def test_pruning_moments_are_counted_in_networks():
    for moments in ([0], [1], [-0.5, 0.5], [2.5]):
        with pytest.raises(ValueError, match="trains 1 for a candidate: each must lie"):
            spec(prune_at=moments)
    assert spec(prune_at=0.75).prune_at == (0.75,)
    assert spec(prune_at=[1, 1.5], architectures=["mlp2", "mlp3"]).prune_at == (1, 1.5)


def test_stop_at_chance_after_is_a_share():
    for share in (0, 1, -0.1, 7):
        with pytest.raises(ValueError, match="stop_at_chance_after"):
            spec(stop_at_chance_after=share)


def test_recipes_change_single_architectures():
    changed = spec(
        architectures=["mlp2", "mlp3"],
        recipe={"epochs": 5, "lr": 0.2},
        recipes={"mlp3": {"lr": 0.3, "precision": "bfloat16"}},
    )
    found = [(t.recipe.epochs, t.recipe.lr, t.recipe.precision) for t in changed.tasks]
    assert found == [(5, 0.2, "float32"), (5, 0.3, "bfloat16")]
    with pytest.raises(ValueError, match="recipes names 'cnn4', which is none"):
        spec(recipes={"cnn4": {"lr": 0.1}})
    with pytest.raises(ValueError, match="unknown key 'rate'"):
        spec(recipes={"mlp2": {"rate": 0.1}})
