"""The command ``evaluate``."""

import json
from pathlib import Path

from cli.commands import TASK, refused, run
from optuna_robustloss.losses import MAE_THETA, MSE_THETA, TaylorLoss, save_loss


def test_evaluate_compares_losses_of_any_name(tmp_path):
    save_loss(TaylorLoss(MSE_THETA, 10, eta=3.0), "mine.json")
    names = ["ce", "gce*0.2", "mine.json", "mae@10", "sce*best"]
    printed = run("evaluate", *names, *TASK, "--validation", "100", "--json", "figures.json")
    figures = json.loads(Path("figures.json").read_text())
    assert figures["task"]["dataset"] == "digits"
    assert figures["task"]["recipe"]["epochs"] == 2
    results = figures["results"]
    assert [r["loss"] for r in results] == [*names[:4], "sce, best scale"]
    assert [r["scales"] is None for r in results] == [True] * 4 + [False]
    for result in results:
        mean = sum(result["test_accuracy"]) / 2
        assert len(result["test_accuracy"]) == 2
        assert result["loss"] in printed
        assert f"{100 * mean:.1f} ± " in printed


def test_evaluate_repeats_itself_and_changes_with_the_seed():
    figures = []
    for seed in (0, 0, 1):
        run("evaluate", "ce", *TASK, "--seed", seed, "--json", "figures.json")
        figures.append(json.loads(Path("figures.json").read_text())["results"])
    assert figures[0] == figures[1] != figures[2]


def test_settings_of_the_recipe_are_changed_for_all_losses():
    options = ["--lr", "0.5", "--batch-size", "60", "--json", "figures.json"]
    run("evaluate", "ce", *TASK, *options)
    recipe = json.loads(Path("figures.json").read_text())["task"]["recipe"]
    assert (recipe["lr"], recipe["batch_size"], recipe["epochs"]) == (0.5, 60, 2)


def test_brackets_in_names_are_shown_as_they_are():
    """Not read as markup for colours."""
    save_loss(TaylorLoss(MAE_THETA, 10), "mine[bold].json")
    assert "mine[bold].json" in run("evaluate", "mine[bold].json", *TASK)
    assert "'[red]ce[/red]'" in refused("evaluate", "[red]ce[/red]", *TASK)
