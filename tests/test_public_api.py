"""What users import, what that costs, and what stands alone."""

import json
import os
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


def test_every_public_name_imports_and_shows_a_runnable_example():
    for name in optuna_robustloss.__all__:
        namespace = {}
        exec(f"from optuna_robustloss import {name}", namespace)
        public = namespace[name]
        assert public.__name__ == name
        assert public.__module__.startswith("optuna_robustloss.")
        assert ">>>" in public.__doc__, name


def test_studies_and_examples_import_public_names_only():
    root = Path(__file__).parents[1]
    scripts = [*(root / "studies").glob("*.py"), *(root / "examples").glob("*.py")]
    assert scripts
    for path in scripts:
        for line in path.read_text(encoding="utf-8").splitlines():
            assert not line.startswith("from optuna_robustloss."), f"{path.name}: {line}"


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
