"""Names and output paths: what cannot be a file is refused before any work."""

import os
from pathlib import Path

import pytest
from typer import BadParameter

from cli.commands import TASK, refused, run
from optuna_robustloss.cli.paths import check_file, check_folder, default_storage, own_file
from optuna_robustloss.losses import load_loss


def test_a_name_with_separators_or_control_characters_names_no_file():
    for name in ("../up", "a/b", "/tmp/a", "a\\b", "a\0b", "a\nb", "\x1b[31m"):
        with pytest.raises(ValueError, match="cannot name a file: give --storage"):
            default_storage(name)
        with pytest.raises(ValueError, match="cannot name a file: give --out"):
            own_file(name, ".json", "--out")


def test_a_name_that_is_too_long_names_no_file():
    with pytest.raises(ValueError, match="File name too long; give --storage"):
        default_storage("x" * 300)


@pytest.mark.parametrize(
    "name", ["a b", "größe", "100%", "a?b#c", "a%20b", "-x", "..", "a@b", "a&b=c:d"]
)
def test_any_other_name_is_one_study_and_one_file_for_all_commands(spec, name):
    run("init", spec, "--study-name", name)
    assert sorted(path.name for path in Path().iterdir()) == sorted([f"{name}.db", spec])
    assert "0 of 4 done" in run("status", "--", name)


def test_a_study_whose_name_is_no_file_needs_other_paths(spec, database, tmp_path):
    assert "give --storage" in refused("init", spec, "--study-name", "../up")
    assert "give --out" in refused(
        "search", spec, "--study-name", "team/ar", "--storage", database, "--seeds", "0"
    )
    assert "give --storage" in refused("status", "../up")
    assert [path.name for path in Path().iterdir()] == [spec]
    both = ["--storage", database, "--out", "loss.json"]
    run("search", spec, "--study-name", "team/ar", *both, "--seeds", "0")
    assert load_loss("loss.json").provenance["study"] == "team/ar"


def test_the_default_file_of_the_loss_is_checked_before_the_search(spec):
    Path("small.json").mkdir()
    assert "'small.json' cannot be written: it is a directory; give --out" in refused(
        "search", spec
    )
    assert not Path("small.db").exists()


def test_an_output_file_that_cannot_be_written_is_refused():
    os.mkfifo("pipe")
    Path("file").touch()
    for path, reason in {
        ".": "it is a directory",
        "no/a.json": "there is no directory 'no'",
        "file/a.json": "there is no directory 'file'",
        "pipe": "it is a device or a pipe",
        "/dev/zero": "it is a device or a pipe",
        "x" * 250: "File name too long",  # with the name of the draft beside it
        "x" * 5000: "File name too long",
        "a\0b": "embedded null byte",
        "/proc/a.json": "No such file or directory",
    }.items():
        with pytest.raises(BadParameter, match=f"cannot be written: {reason}"):
            check_file(Path(path))
    assert check_file(Path("new.json")) == Path("new.json")
    assert check_file(Path("file")) == Path("file")
    assert sorted(path.name for path in Path().iterdir()) == ["file", "pipe"]


def test_an_output_folder_that_cannot_be_made_is_refused():
    Path("file").touch()
    for path in ("file/a", "x" * 300, "a/" + "x" * 300, "a\0b"):
        with pytest.raises(BadParameter, match="cannot be"):
            check_folder(Path(path))
    assert check_folder(Path("a/b")) == Path("a/b")
    assert check_folder(Path()) == Path()


def test_results_replace_a_file_whole():
    Path("figures.json").write_text("precious")
    run("evaluate", "ce", *TASK[:-2], "--seeds", "1", "--json", "figures.json")
    assert "precious" not in Path("figures.json").read_text()
    assert [path.name for path in Path().iterdir()] == ["figures.json"]
