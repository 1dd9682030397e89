"""What users import, what that costs, and what stands alone."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from importlib import resources
from importlib.metadata import version
from pathlib import Path

import pytest

import optuna_robustloss


def run(code, *arguments, cwd=None):
    """Run Python code in a fresh interpreter and return what it printed as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", optuna_robustloss.__all__)
def test_every_public_name_imports(name):
    namespace = {}
    exec(f"from optuna_robustloss import {name}", namespace)
    public = namespace[name]
    assert public.__name__ == name
    assert public.__module__.startswith("optuna_robustloss.")
    assert public.__doc__


def test_the_public_names_are_sorted_and_all_there_with_a_star():
    namespace = {}
    exec("from optuna_robustloss import *", namespace)
    assert namespace.keys() - {"__builtins__"} == set(optuna_robustloss.__all__)
    assert len(optuna_robustloss.__all__) == len(set(optuna_robustloss.__all__))


def test_a_name_that_is_not_public_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'optuna_robustloss' has no attribute 'nothing'"):
        _ = optuna_robustloss.nothing


def test_the_version_is_the_installed_one():
    assert optuna_robustloss.__version__ == version("optuna-robustloss")


def test_type_hints_ship():
    assert resources.files("optuna_robustloss").joinpath("py.typed").is_file()


def test_losses_are_used_without_the_packages_of_a_search():
    """Optuna, timm and the rest are loaded when the first name that needs them is used."""
    heavy = ["optuna", "timm", "torchvision", "sklearn", "pydantic", "sqlalchemy", "typer", "rich"]
    loaded = run(
        "import json, sys, torch\n"
        "import optuna_robustloss\n"
        "optuna_robustloss.list_losses()\n"
        "loss = optuna_robustloss.TaylorLoss([0.5, 0.5, 0, 0, 0, 0, -2, 0, 0, 0, 0, 0], 10)\n"
        "loss(torch.zeros(1, 10), torch.tensor([0]))\n"
        "before = sorted(sys.modules)\n"
        "optuna_robustloss.suggest_taylor_loss\n"
        "print(json.dumps([before, 'optuna' in sys.modules]))"
    )
    assert [name for name in heavy if name in loaded[0]] == []
    assert loaded[1]


def test_the_losses_folder_works_copied_elsewhere(tmp_path):
    """Under another name, with PyTorch and nothing of this package or its other dependencies."""
    source = Path(importlib.import_module("optuna_robustloss.losses").__file__).parent
    shutil.copytree(source, tmp_path / "borrowed", ignore=shutil.ignore_patterns("__pycache__"))
    modules = sorted(
        ".".join(path.relative_to(tmp_path).with_suffix("").parts).removesuffix(".__init__")
        for path in (tmp_path / "borrowed").rglob("*.py")
    )
    assert len(modules) > 5
    names = run(
        "import importlib, json, sys\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "blocked = ('optuna_robustloss', 'optuna', 'cmaes', 'timm', 'torchvision', 'sklearn',\n"
        "           'scipy', 'pydantic', 'sqlalchemy', 'yaml', 'typer', 'rich', 'plotly')\n"
        "sys.modules.update(dict.fromkeys(blocked))  # importing any of them fails\n"
        "for name in json.loads(sys.argv[2]): importlib.import_module(name)\n"
        "import borrowed, torch\n"
        "from borrowed import make_loss\n"
        "hand_made = ['ce', 'gce*0.2', 'sce', 'mae@10', 'nce+agce', 'anl-ce*0.2']\n"
        "for name in [*hand_made, *borrowed.list_losses()]:\n"
        "    loss = make_loss(name, 10)(torch.zeros(2, 10), torch.tensor([0, 1]))\n"
        "    assert loss.isfinite(), name\n"
        "print(json.dumps(type(loss).__module__ or True))",
        tmp_path,
        json.dumps(modules),
        cwd=tmp_path,
    )
    assert names == "torch"
