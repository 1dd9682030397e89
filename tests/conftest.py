import ast
import functools
import os
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from support.postgres import postgres_server, postgres_url  # noqa: F401  (fixtures)

# Small networks are slower on several threads, and much slower on a shared machine.
torch.set_num_threads(1)
# What is fastest here is measured anew, and the user's own notes stay as they are.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="optuna-robustloss-")

# Behind the installed package: the timing scripts in benchmarks/ are tested, too.
sys.path.append(str(Path(__file__).parents[1]))

#: A test module that imports one of these uses real servers, networks, browsers or processes.
OUTSIDE = {
    "subprocess",
    "multiprocessing",
    "torch.multiprocessing",
    "support.chaos",
    "support.netns",
    "support.postgres",
}


@functools.cache
def leaves_the_process(path: Path) -> bool:
    """Whether a test module imports something that starts processes."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
        else:
            continue
        if not OUTSIDE.isdisjoint(names):
            return True
    return False


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put every test that is not slow into a tier, by what its module imports or is marked as."""
    for item in items:
        if item.get_closest_marker("slow"):
            continue
        outside = item.get_closest_marker("integration") or leaves_the_process(item.path)
        item.add_marker("integration" if outside else "unit")
