import json

import pytest
from pydantic import ValidationError

from optuna_robustloss.tasks.noise import NoiseSpec
from optuna_robustloss.tasks.recipes import Recipe, recipe_for
from optuna_robustloss.tasks.spec import TaskSpec

# The short form


@pytest.mark.parametrize(
    ("text", "names", "noise"),
    [
        ("mnist,mlp2,symmetric:0.8", ("mnist", "mlp2"), "symmetric:0.8"),
        ("cifar10,resnet18", ("cifar10", "resnet18"), "none"),
        (" digits , mlp3 ,\tpair-flip:0.4 ", ("digits", "mlp3"), "pair-flip:0.4"),
        ("some/set.npz,cnn4,given", ("some/set.npz", "cnn4"), "given"),
        ("folder:some/set,timm/resnet10t", ("folder:some/set", "timm/resnet10t"), "none"),
    ],
)
def test_text_is_data_set_network_and_noise(text, names, noise):
    spec = TaskSpec.parse(text)
    assert (spec.dataset, spec.architecture) == names
    assert spec.noise == NoiseSpec.parse(noise)
    assert spec.recipe == recipe_for(names[1], names[0])


def test_text_of_another_form_is_refused_with_an_example():
    for text in [
        "",
        "mnist",
        "mnist,",
        ",mlp2",
        "mnist,mlp2,",
        "mnist,mlp2,none,1000",
        "mnist mlp2",
    ]:
        with pytest.raises(
            ValueError, match=r"for example mnist,mlp2,symmetric:0\.8; got"
        ) as caught:
            TaskSpec.parse(text)
        assert repr(text) in str(caught.value)


def test_an_unknown_name_is_refused_before_anything_is_loaded():
    for text, message in [
        ("mnits,mlp2", "unknown data set 'mnits'; did you mean .*'mnist'"),
        ("mnist,mpl2", "unknown network 'mpl2'.*mlp2"),
        ("mnist,mlp2,symetric:0.8", "'symmetric'"),
        ("mnist,mlp2,symmetric", "needs a rate"),
    ]:
        with pytest.raises(ValueError, match=message):
            TaskSpec.parse(text)


def test_further_fields_go_with_the_text():
    spec = TaskSpec.parse("digits,mlp2", train=5, validation=3, validation_labels="noisy")
    assert (spec.train, spec.validation, spec.validation_labels) == (5, 3, "noisy")


def test_by_default_all_images_are_trained_on_and_validation_labels_are_clean():
    spec = TaskSpec(dataset="digits", architecture="mlp2")
    assert (spec.train, spec.validation, spec.validation_labels) == (None, 0, "clean")
    assert spec.noise.kind == "none"
    assert not spec.pretrained


def test_label():
    for text, label in [
        ("mnist,mlp2,symmetric:0.8", "mnist/mlp2/symmetric 80 %"),
        ("cifar10,resnet18,human:worse_label", "cifar10/resnet18/human worse_label"),
        ("digits,mlp2", "digits/mlp2/clean"),
    ]:
        assert TaskSpec.parse(text).label == label


# The recipe


def test_changes_are_merged_over_the_papers_recipe():
    paper = recipe_for("mlp2", "mnist")
    spec = TaskSpec.parse("mnist,mlp2", recipe={"epochs": 3, "lr": 0.05})
    assert (spec.recipe.epochs, spec.recipe.lr) == (3, 0.05)
    kept = spec.recipe.model_dump(exclude={"epochs", "lr"})
    assert kept == paper.model_dump(exclude={"epochs", "lr"})


def test_another_optimizer_drops_the_momentum_of_the_old_one():
    recipe = TaskSpec.parse("mnist,mlp2", recipe={"optimizer": "adam", "lr": 0.001}).recipe
    assert (recipe.optimizer, recipe.momentum) == ("adam", 0.0)
    assert recipe.batch_size == 128


def test_the_same_optimizer_named_again_keeps_its_momentum():
    recipe = TaskSpec.parse("mnist,mlp2", recipe={"optimizer": "sgd", "epochs": 2}).recipe
    assert recipe.momentum == 0.9


def test_another_schedule_drops_the_milestones_of_the_old_one():
    recipe = TaskSpec.parse("cifar10,resnet18", recipe={"schedule": "cosine"}).recipe
    assert (recipe.milestones, recipe.factors) == ((), ())
    assert (recipe.lookahead_k, recipe.weight_decay) == (5, 1e-3)


def test_another_schedule_drops_the_decay_start_of_the_old_one():
    recipe = TaskSpec.parse("cifar10,jocor", recipe={"schedule": "constant"}).recipe
    assert recipe.decay_start == 0.0
    assert recipe.constant_lr


def test_a_whole_recipe_is_taken_as_it_is():
    recipe = Recipe(optimizer="adamw", lr=0.3, batch_size=7, epochs=9)
    assert TaskSpec.parse("cifar10,resnet18", recipe=recipe).recipe == recipe


def test_a_recipe_that_is_none_is_refused():
    for recipe, message in [
        ({"epoch": 3}, "epoch\n.*Extra inputs are not permitted"),
        ({"milestones": [0.5], "factors": [0.1]}, "belong to schedule 'step'"),
        ({"lr": 0}, "greater than or equal to 0.00"),
        ("adam", "valid dictionary or instance of Recipe"),
        (["adam"], "valid dictionary or instance of Recipe"),
    ]:
        with pytest.raises(ValidationError, match=message):
            TaskSpec.parse("mnist,mlp2", recipe=recipe)


# Other fields


def test_fields_that_do_not_fit_are_refused():
    for fields, message in [
        ({"epochs": 3}, "epochs\n.*Extra inputs are not permitted"),
        ({"train": 0}, "greater than or equal to 1"),
        ({"validation": -1}, "greater than or equal to 0"),
        ({"validation_labels": "dirty"}, "'clean' or 'noisy'"),
    ]:
        with pytest.raises(ValidationError, match=message):
            TaskSpec.parse("mnist,mlp2", **fields)


@pytest.mark.parametrize("field", ["dataset", "architecture"])
def test_a_missing_name_is_named(field):
    names = {"dataset": "mnist", "architecture": "mlp2"}
    del names[field]
    with pytest.raises(ValidationError, match=f"{field}\n.*Field required"):
        TaskSpec(**names)


def test_equal_specs_are_one_key():
    first = TaskSpec.parse("mnist,mlp2,symmetric:0.8")
    again = TaskSpec.parse("mnist,mlp2,symmetric:0.8", recipe={"epochs": 100})
    assert {first: 1}[again] == 1
    assert first != TaskSpec.parse("mnist,mlp2,symmetric:0.8", recipe={"epochs": 99})


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("mnist,mlp2,symmetric:0.8", {"train": 100, "validation": 10}),
        ("cifar10,resnet18,human:worse_label", {"validation_labels": "noisy"}),
        ("cifar10,resnet18,matrix:some/m.npy", {"recipe": {"schedule": "cosine"}}),
        ("cifar10,jocor", {"recipe": {"optimizer": "sgd", "schedule": "constant"}}),
        ("clothing1m,torchvision/resnet50,given", {"pretrained": True}),
    ],
)
def test_a_spec_comes_back_from_json(text, fields):
    spec = TaskSpec.parse(text, **fields)
    written = spec.model_dump_json()
    assert TaskSpec.model_validate_json(written) == spec
    assert TaskSpec.model_validate(json.loads(written)) == spec
    assert TaskSpec.model_validate(spec.model_dump()) == spec
