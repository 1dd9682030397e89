"""The losses need PyTorch only: their folder works on its own, and importing them is cheap."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import optuna_robustloss.losses


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


def test_losses_load_nothing_but_pytorch():
    """Not even the parts of PyTorch that ``import torch`` leaves out because they are slow."""
    heavy = {"optuna", "timm", "torchvision", "pandas", "sklearn", "sympy", "torch._dynamo"}
    heavy |= {"cmaes", "scipy", "pydantic", "sqlalchemy", "yaml", "plotly", "typer", "rich"}
    loaded = run(
        "import json, sys, torch\n"
        "before = sorted(sys.modules)\n"
        "import optuna_robustloss\n"
        "loss = optuna_robustloss.load_loss('ar_sym80')\n"
        "loss(torch.zeros(2, 10), torch.tensor([0, 1]))\n"
        "optuna_robustloss.make_loss('sce-then-confirm', 10)\n"
        "losses = sorted(sys.modules)\n"
        "optuna_robustloss.suggest_taylor_loss\n"
        "print(json.dumps([before, losses, 'optuna' in sys.modules]))"
    )
    before, losses, optuna_when_used = loaded
    assert heavy & (set(losses) - set(before)) == set()
    assert optuna_when_used


def test_the_folder_works_copied_elsewhere(tmp_path):
    """Under another name, without this package and its other dependencies."""
    source = Path(optuna_robustloss.losses.__file__).parent
    shutil.copytree(source, tmp_path / "borrowed", ignore=shutil.ignore_patterns("__pycache__"))
    modules = sorted(
        ".".join(path.relative_to(tmp_path).with_suffix("").parts).removesuffix(".__init__")
        for path in (tmp_path / "borrowed").rglob("*.py")
    )
    assert len(modules) > 10
    values = run(
        "import importlib, json, sys\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "blocked = ('optuna_robustloss', 'optuna', 'cmaes', 'timm', 'torchvision', 'sklearn',\n"
        "           'scipy', 'pydantic', 'sqlalchemy', 'yaml', 'typer', 'rich', 'plotly')\n"
        "sys.modules.update(dict.fromkeys(blocked))  # importing any of them fails\n"
        "for name in json.loads(sys.argv[2]): importlib.import_module(name)\n"
        "import borrowed, torch\n"
        "borrowed.save_loss(borrowed.make_loss('gce*0.2', 10), 'mine.json')\n"
        "names = [*borrowed.list_methods(), 'mae@10', *borrowed.list_losses(), 'mine.json']\n"
        "losses = [borrowed.make_loss(name, 10).eval() for name in names]\n"
        "batch = torch.zeros(2, 10), torch.tensor([0, 1])\n"
        "print(json.dumps([loss(*batch).item() for loss in losses]))",
        tmp_path,
        json.dumps(modules),
        cwd=tmp_path,
    )
    assert len(values) > 15
    assert all(value > 0 for value in values)
