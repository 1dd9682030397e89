"""The rooms of the package and the arrows between them: no lower room knows an upper one."""

import ast
from pathlib import Path

import optuna_robustloss

PACKAGE = Path(optuna_robustloss.__file__).parent

#: For every room, the rooms it may import.
GROUND = {"seeds", "strict_yaml", "spec_files", "attributes", "distributed", "losses"}
MAY_IMPORT = {
    "seeds": set(),
    "attributes": set(),
    "strict_yaml": set(),
    "spec_files": {"attributes", "strict_yaml"},
    "distributed": set(),
    "losses": set(),
    "tasks": {"seeds", "spec_files"},
    "training": {"losses", "tasks", "seeds"},
    "sampler": {"distributed", "seeds"},
    "search": {*GROUND, "tasks", "training", "sampler"},
    "benchmark": {*GROUND, "tasks", "training"},
    "report": {*GROUND, "tasks", "training", "sampler", "search", "benchmark"},
    "cli": {*GROUND, "tasks", "training", "sampler", "search", "benchmark", "report"},
}
#: The package's own face: what a user imports, and what ``python -m`` runs.
FACE = {"__init__", "__main__"}
MOST_MODULES = 13
LONGEST_MODULE = 320
LARGEST_ROOM = 3700


def modules():
    return sorted(PACKAGE.rglob("*.py"))


def room_of(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(path):
    """Names of the package's modules that a file imports, at its top or inside a function."""
    package = ("optuna_robustloss", *path.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module.split(".") if node.module else []
            if node.level:
                base = [*package[: len(package) - node.level + 1], *base]
            yield from (".".join([*base, alias.name]) for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if node.value.startswith("optuna_robustloss."):
                yield node.value  # a module named by a string is an import, too


def arrows():
    """Pairs of rooms, with a file that imports across."""
    found = {}
    for path in modules():
        for name in imported(path):
            parts = name.split(".")
            if parts[0] == "optuna_robustloss" and len(parts) > 1:
                found.setdefault((room_of(path), parts[1]), path.relative_to(PACKAGE))
    return found


def test_no_room_imports_one_above_it():
    upwards = [
        f"{path}: {room} imports {other}"
        for (room, other), path in arrows().items()
        if room not in FACE and room != other and other not in MAY_IMPORT[room]
    ]
    assert upwards == []


def test_every_room_is_known_here():
    rooms = {room_of(path) for path in modules()} - FACE
    assert rooms == set(MAY_IMPORT)


def test_the_arrows_have_no_cycle():
    done = set()
    for room, below in MAY_IMPORT.items():  # listed from the ground up
        assert below <= done
        done.add(room)


def test_the_losses_import_pytorch_only():
    foreign = {
        name.split(".")[0]
        for path in (PACKAGE / "losses").rglob("*.py")
        for name in imported(path)
        if name.split(".")[0] not in {"optuna_robustloss", "torch"}
    }
    import sys

    assert foreign - sys.stdlib_module_names == set()


def test_a_folder_is_read_off_its_listing():
    """About a dozen modules in a folder, a file in one sitting, a room in an afternoon."""
    for folder in {path.parent for path in modules()}:
        assert len(list(folder.glob("*.py"))) <= MOST_MODULES, folder
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in modules()}
    assert {path for path, count in lines.items() if count > LONGEST_MODULE} == set()
    rooms = {}
    for path, count in lines.items():
        rooms[room_of(path)] = rooms.get(room_of(path), 0) + count
    assert {room: count for room, count in rooms.items() if count > LARGEST_ROOM} == {}
