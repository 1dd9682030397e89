"""The commands of a search from end to end, in this process."""

from pathlib import Path

import yaml

from cli.commands import SPEC, run, trials
from optuna_robustloss.losses import load_loss
from optuna_robustloss.search.objective import NoisyLabelObjective


def test_a_search_leaves_its_database_and_its_loss_and_compares_them(spec):
    printed = run("search", spec, "--seeds", "2")
    assert sorted(p.name for p in Path().iterdir()) == ["small.db", "small.json", "small.yaml"]
    loss = load_loss("small.json")
    assert loss.provenance["study"] == "small"
    assert loss.provenance["trials"] == 4
    rows = [line.split("│")[1].strip() for line in printed.splitlines() if line.startswith("│")]
    comparison = rows[-8:]
    assert comparison[:6] == ["found (small.json)", "ce", "gce", "sce", "mae", "mae@10"]
    assert comparison[6].startswith("gce, best scale × ")
    assert comparison[7].startswith("sce, best scale × ")
    finalists = rows[:-8]
    assert sum("(chosen)" in row for row in finalists) == 1
    assert sum("(control)" in row for row in finalists) == 1
    title = "digits/mlp2/symmetric 40 %: clean test accuracy at the last epoch, 2 seeds"
    assert title in " ".join(printed.split())
    assert printed.splitlines()[-2:] == ["database: sqlite:///small.db", "loss: small.json"]

    again = run("search", spec, "--seeds", "0")
    assert len(trials("sqlite:///small.db")) == 4
    assert "finalists" not in again  # nor is the second round run again
    assert load_loss("small.json").theta == loss.theta


def test_a_search_in_parts_goes_on_where_it_stopped(spec):
    for done in (1, 3):
        printed = run("search", spec, "--trials", min(done, 2), "--study-name", "parts")
        assert printed.splitlines()[-1] == f"{done} of 4 trials are done"
        assert not Path("parts.json").exists()
    run("search", spec, "--study-name", "parts", "--seeds", "0", "--out", "elsewhere.json")
    assert len(trials("sqlite:///parts.db", "parts")) == 4
    assert load_loss("elsewhere.json").provenance["study"] == "parts"


def test_a_search_with_another_sampler_has_the_start_loss_in_front():
    Path("random.yaml").write_text(yaml.safe_dump(SPEC | {"sampler": "random"}))
    run("search", "random.yaml", "--seeds", "0")
    assert [t.state.name for t in trials("sqlite:///small.db")] == ["COMPLETE"] * 5
    assert trials("sqlite:///small.db")[0].user_attrs["start"] == "mae"
    assert load_loss("small.json").provenance["spec"]["sampler"] == "random"


def test_a_search_trains_a_generation_as_one_population_unless_told_otherwise(spec, monkeypatch):
    asked, evaluate = [], NoisyLabelObjective.evaluate

    def note(self, trials):
        asked.append(len(trials))
        return evaluate(self, trials)

    monkeypatch.setattr(NoisyLabelObjective, "evaluate", note)
    run("search", spec, "--seeds", "0")
    run("search", spec, "--seeds", "0", "--study-name", "pairs", "--candidates", "2")
    worker = ["work", "--storage", "sqlite:///alone.db", "--study-name", "small"]
    run("init", spec, "--storage", "sqlite:///alone.db")
    run(*worker, "--trials", "1")  # by itself one at a time, as others may be about
    run(*worker, "--workers", "1")
    assert asked == [4, 2, 2, 1, 3]


def test_workers_share_a_study_until_it_is_done(spec, database):
    printed = run("init", spec, "--storage", database, "--study-name", "shared")
    assert "study 'shared' in sqlite:///" in printed
    assert trials(database, "shared") == []
    worker = ["work", "--storage", database, "--study-name", "shared"]
    run(*worker, "--trials", "3", "--candidates", "2", "--lease", "60")
    assert len(trials(database, "shared")) == 3
    run(*worker)
    run(*worker)  # finds nothing left to do
    assert [t.state.name for t in trials(database, "shared")] == ["COMPLETE"] * 4
    printed = run("export", "shared", "mine.json", "--storage", database)
    assert "loss: mine.json" in printed
    assert "Finalists on 3 fresh seeds" in printed
    assert load_loss("mine.json").provenance["study"] == "shared"
