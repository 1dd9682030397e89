"""A study as a YAML file: its tasks, its options, and what its hash covers."""

import json
import warnings
from pathlib import Path

import pytest
import yaml
from support.small import search_space

from optuna_robustloss.search.spec import StudySpec
from optuna_robustloss.tasks.noise import NoiseSpec
from optuna_robustloss.tasks.recipes import recipe_for

STUDIES = Path(__file__).parents[2] / "studies"

MINIMAL = {
    "name": "small",
    "datasets": ["digits"],
    "architectures": ["mlp2"],
    "noise": "symmetric:0.4",
}
RATE = {"kind": "symmetric", "rate": 0.4}


def spec(**changes):
    return StudySpec.from_values(MINIMAL | changes, "study.yaml")


# --- The studies in the repository ---

SYMMETRIC, ASYMMETRIC = "symmetric 80 %", "asymmetric 40 %"
NETWORKS, DATA = ["mlp2", "mlp3", "cnn4"], ["mnist", "kmnist", "cifar10"]
PROMISED = {
    "ar_sym80": [f"mnist/{a}/{SYMMETRIC}" for a in NETWORKS],
    "ar_asym40": [f"mnist/{a}/{ASYMMETRIC}" for a in NETWORKS],
    "dr_sym80": [f"{d}/cnn4/{SYMMETRIC}" for d in DATA],
    "dr_asym40": [f"{d}/cnn4/{ASYMMETRIC}" for d in DATA],
    "joint_sym80": [f"{d}/{a}/{SYMMETRIC}" for d in DATA for a in NETWORKS],
    "specific_mnist_sym80": [f"mnist/jocor/{SYMMETRIC}"],
    "digits": ["digits/mlp2/symmetric 60 %"],
    "mixture": [
        f"mnist/mlp2/{noise}" for noise in (SYMMETRIC, "symmetric 40 %", ASYMMETRIC, "clean")
    ],
    "general": [
        f"{data}/{network}/{noise}"
        for data in ("mnist", "kmnist")
        for network in ("mlp2", "mlp3")
        for noise in (SYMMETRIC, "symmetric 40 %", ASYMMETRIC, "clean")
    ],
    "mixture_phased": [
        f"mnist/mlp2/{noise}" for noise in (SYMMETRIC, "symmetric 40 %", ASYMMETRIC, "clean")
    ],
}


@pytest.mark.parametrize("name", PROMISED)
def test_shipped_studies_have_the_tasks_they_promise(name):
    shipped = StudySpec.from_yaml(STUDIES / f"{name}.yaml")
    assert shipped.name == name
    assert [task.label for task in shipped.tasks] == PROMISED[name]


def test_every_shipped_study_loads_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        searches = [p for p in STUDIES.glob("*.yaml") if "methods:" not in p.read_text()]
        assert len(searches) >= 10
        for path in searches:
            assert StudySpec.from_yaml(path).n_trials > 100, path.name


def test_the_mixture_searches_range_and_cross_entropy_in_six_coordinates():
    space = StudySpec.from_yaml(STUDIES / "mixture.yaml").space.distributions
    assert len(space) == 8
    assert [name for name, d in space.items() if d.log] == [
        "theta_eta",
        "theta_cross_entropy_weight",
    ]


# --- What a spec means ---


def test_every_data_set_meets_every_network_and_every_noise():
    both = spec(
        datasets=["digits", "mnist"],
        architectures=["mlp2", "mlp3"],
        noise=["symmetric:0.4", "none"],
    )
    assert len({task.label for task in both.tasks}) == 8


def test_tasks_share_the_split_and_the_changes_to_their_own_recipes():
    jocor, mlp = spec(
        architectures=["jocor", "mlp2"], recipe={"epochs": 3}, train=150, validation=120
    ).tasks
    for task, name in ((jocor, "jocor"), (mlp, "mlp2")):
        assert (task.train, task.validation, task.validation_labels) == (150, 120, "clean")
        assert task.recipe == recipe_for(name, "digits").changed({"epochs": 3})
    assert jocor.recipe.optimizer != mlp.recipe.optimizer


def test_defaults_are_the_papers_space_around_mae():
    assert spec().space.distributions == search_space().distributions
    assert len(spec().space.distributions) == 12
    assert spec().space.start == "mae"


def test_one_name_is_a_list_of_one():
    assert spec(datasets="digits", architectures="mlp2", horizons=1) == spec()


def test_noise_may_be_text_a_mapping_or_a_list():
    for noise in ("symmetric:0.4", ["symmetric:0.4"], RATE, [RATE]):
        assert spec(noise=noise).noise == (NoiseSpec(kind="symmetric", rate=0.4),)
        assert spec(noise=noise).hash == spec().hash


def test_ranges_are_two_numbers():
    ranged = spec(eta=[0.1, 10], cross_entropy_weight=[0.003, 0.3])
    assert ranged.eta == (0.1, 10.0)
    assert len(ranged.space.distributions) == 14


# --- Identity ---

CHANGES = {
    "name": "other",
    "datasets": ["mnist"],
    "architectures": ["mlp3"],
    "noise": "symmetric:0.41",
    "recipe": {"epochs": 3},
    "train": 500,
    "validation": 500,
    "validation_labels": "noisy",
    "score": "best",
    "horizons": [1, 2],
    "recipes": {"mlp2": {"epochs": 3}},
    "stop_at_chance_after": None,
    "prune_at": [0.5],
    "popsize": 8,
    "generations": 8,
    "seed": 1,
    "eta": 1,
    "cross_entropy_weight": 0.1,
    "variable": "log",
    "coordinates": "canonical",
    "start": "mse",
    "half_width": 1,
    "sampler": "tpe",
    "sigma0": 0.2,
    "lr_adapt": True,
    "separable": True,
    "max_retry": 0,
    "source_studies": ["earlier"],
    "finalists": 2,
    "finalist_seeds": 4,
    "pretrained": True,
    "phases": 2,
    "late_eta": 1,
    "late_cross_entropy_weight": 0.1,
    "late_start": "mae",
    "switch": 0.1,
    "switch_width": 0.1,
    "adaptive_after": 2.0,
    "adaptive_guard": 0.02,
    "adaptive_averaging": 60.0,
    "adaptive_width": 0.6,
}


def unchanged(key):
    """The study that ``CHANGES`` changes: options of two phases need two."""
    if key.startswith("adaptive_"):
        return MINIMAL | {"phases": "adaptive"}
    return MINIMAL | ({"phases": 2} if key.startswith(("late_", "switch")) else {})


def test_every_key_is_part_of_the_hash_and_of_the_differences():
    assert CHANGES.keys() == StudySpec.model_fields.keys()
    hashes = {spec().hash}
    for key, value in CHANGES.items():
        before, changed = (StudySpec(**unchanged(key) | c) for c in ({}, {key: value}))
        (difference,) = before.differences(changed)
        assert difference.startswith(f"{key}: ")
        hashes.add(changed.hash)
    assert len(hashes) == len(CHANGES) + 1
    assert spec().differences(spec()) == []


def test_a_key_at_its_default_is_not_part_of_the_hash():
    """A later version with one more key then goes on with the studies of today."""
    fields = StudySpec.model_fields.items()
    defaults = {
        n: f.get_default(call_default_factory=True) for n, f in fields if not f.is_required()
    }
    assert spec(**defaults).hash == spec().hash


def test_the_order_of_keys_is_not_part_of_the_hash(tmp_path):
    path = tmp_path / "study.yaml"
    values = MINIMAL | {"recipe": {"lr": 0.1, "epochs": 3}}
    hashes = set()
    for items in (list(values.items()), list(values.items())[::-1]):
        path.write_text(yaml.safe_dump(dict(items), sort_keys=False))
        hashes.add(StudySpec.from_yaml(path).hash)
    hashes.add(spec(recipe={"epochs": 3, "lr": 0.1}).hash)
    assert len(hashes) == 1


@pytest.mark.parametrize("changes", [{}, {"eta": [1, 2], "horizons": [1, 2], "noise": "none"}])
def test_a_spec_survives_its_json(changes):
    before = spec(**changes)
    after = StudySpec.from_values(json.loads(before.model_dump_json()), "database")
    assert after == before
    assert after.hash == before.hash
