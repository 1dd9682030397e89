"""What the figures draw, as data; a browser draws one in test_browser."""

import dataclasses

import pytest
import torch
from torch import nn

from optuna_robustloss.losses import MAE_THETA, GCELoss, MAELoss, TaylorLoss
from optuna_robustloss.report.figures.cumulative_lr import accuracy_against_cumulative_lr
from optuna_robustloss.report.figures.curves import learning_curves
from optuna_robustloss.report.figures.losses import loss_curve, loss_shapes
from optuna_robustloss.report.figures.noise import accuracy_against_noise
from optuna_robustloss.report.figures.ranks import critical_difference_diagram
from optuna_robustloss.report.statistics import Ranking
from optuna_robustloss.report.styles import styles
from report.sample import METHODS, TASKS, fixed, measured, result, results


def lines(figure, name):
    return [trace for trace in figure.data if trace.name == name]


# --- Critical differences ---

RANKING = Ranking(
    ("gce", "sce", "ce"), (1.2, 1.8, 3.0), 10, 10, 0.05, None, 1.05, (("gce", "sce"),)
)


def test_the_diagram_has_the_best_method_on_the_right():
    figure = critical_difference_diagram(RANKING, "ranks")
    left, right = figure.layout.xaxis.range
    assert left > 3 > 1 > right
    ends = {trace.name: (trace.x[0], trace.x[-1]) for trace in figure.data if trace.name}
    assert ends == {"GCE": (1.2, 1), "SCE": (1.8, 1), "CE": (3.0, 3)}


def test_the_diagram_has_bars_for_the_difference_and_the_cliques():
    figure = critical_difference_diagram(RANKING, "ranks")
    clique, width = (trace for trace in figure.data if trace.name is None)
    assert width.x[1] - width.x[0] == pytest.approx(1.05)
    assert clique.x[0] < 1.2 < 1.8 < clique.x[1] < 3
    texts = [annotation.text for annotation in figure.layout.annotations]
    assert texts == ["GCE (1.20)", "SCE (1.80)", "CE (3.00)", "CD = 1.05"]


def test_the_diagram_works_without_a_critical_difference():
    bare = dataclasses.replace(RANKING, critical_difference=None, cliques=())
    assert len(critical_difference_diagram(bare, "ranks").data) == 3


def test_names_are_no_markup():
    figure = critical_difference_diagram(
        dataclasses.replace(RANKING, methods=("<b>x</b>", "sce", "ce"), cliques=()), "a <i>"
    )
    assert figure.layout.annotations[0].text.startswith("&lt;b&gt;x")
    assert "&lt;i&gt;" in figure.layout.title.text


# --- Shapes of losses ---


@pytest.mark.parametrize("num_classes", [2, 10])
def test_the_curve_of_the_label_is_the_loss_of_its_probability(num_classes):
    probability, ce = loss_curve(nn.CrossEntropyLoss(), num_classes, labelled=True)
    torch.testing.assert_close(ce, -probability.log(), atol=1e-5, rtol=1e-5)
    _, gce = loss_curve(GCELoss(), num_classes, labelled=True)
    torch.testing.assert_close(gce, (1 - probability**0.7) / 0.7, atol=1e-5, rtol=1e-5)


def test_the_curve_of_another_class_leaves_the_label_an_equal_share_of_the_rest():
    probability, mae = loss_curve(MAELoss(), 10, labelled=False)
    torch.testing.assert_close(mae, 2 * (1 - (1 - probability) / 9), atol=1e-5, rtol=1e-5)


def test_two_classes_are_mirror_images():
    taylor = TaylorLoss([0.3, 0.6, 0, 1, 0, 0, -2, 0.5, 0, 0, 0, 0], 2)
    label, other = (loss_curve(taylor, 2, labelled=labelled)[1] for labelled in (True, False))
    torch.testing.assert_close(label, other.flip(0), atol=1e-5, rtol=1e-5)


def test_shapes_span_the_range_from_0_to_1():
    criteria = {"ce": nn.CrossEntropyLoss(), "gce": GCELoss(reduction="none")}
    figure = loss_shapes(criteria)
    for name in ("CE", "GCE"):
        label, other = lines(figure, name)
        values = [*label.y, *other.y]
        assert (min(values), max(values)) == pytest.approx((0, 1))
        assert label.y[0] > label.y[-1]
        assert other.y[0] < other.y[-1]


def test_the_same_shape_at_another_scale_is_the_same_line():
    small, large = MAELoss(), TaylorLoss(MAE_THETA, 2, eta=50)
    figure = loss_shapes({"mae": small, "mae@50": large})
    assert lines(figure, "MAE")[0].y == pytest.approx(lines(figure, "mae@50")[0].y, abs=1e-4)


def test_a_loss_that_is_not_finite_is_an_error():
    class Broken(nn.Module):
        def forward(self, logits, target):
            return logits.sum() * float("nan")

    with pytest.raises(ValueError, match="not finite"):
        loss_shapes({"broken": Broken()})


# --- Accuracy against noise ---

RATES = {TASKS[0]: ("mnist/mlp2", 0.8), TASKS[1]: ("mnist/mlp2", 0.4), TASKS[2]: ("cifar10", 0.4)}


def test_noise_levels_are_in_order_with_a_band_over_seeds():
    rows = fixed({"ce": {TASKS[0]: [0.2, 0.4], TASKS[1]: [0.8, 0.8]}})
    figure = accuracy_against_noise(rows, RATES)
    (line,) = lines(figure, "CE")
    assert line.x == (40, 80)
    assert line.y == pytest.approx((80, 30))
    (band,) = [trace for trace in figure.data if trace.fill]
    assert max(band.y[:2]) == pytest.approx(80)
    assert band.y[1] - 30 == pytest.approx(14.142, abs=0.001)


def test_each_group_has_a_panel_and_each_method_one_entry_in_the_legend():
    figure = accuracy_against_noise(measured(), RATES, pick="best")
    assert [a.text for a in figure.layout.annotations] == ["mnist/mlp2", "cifar10"]
    for method in ("CE", "GCE", "ar_sym80"):
        assert [trace.showlegend for trace in lines(figure, method)] == [True, False]


def test_panels_break_into_rows():
    table = {"ce": {f"task {i}": [0.5] for i in range(5)}}
    figure = accuracy_against_noise(fixed(table), {t: (t, 0.4) for t in table["ce"]})
    assert len(lines(figure, "CE")) == 5
    tops = [round(figure.layout[f"yaxis{i or ''}"].domain[1], 2) for i in (0, 2, 3, 4, 5)]
    assert tops[0] == tops[1] == tops[2] > tops[3] == tops[4]


def test_a_method_that_is_in_the_second_panel_only_is_in_the_legend():
    rows = fixed({"ce": {TASKS[0]: [0.2]}, "gce": {TASKS[2]: [0.3]}})
    assert lines(accuracy_against_noise(rows, RATES), "GCE")[0].showlegend


def test_no_task_with_a_rate_is_an_error():
    with pytest.raises(ValueError, match="no accuracy of the pick 'last'"):
        accuracy_against_noise(measured(), {})


# --- Learning curves ---


def test_learning_curves_are_means_over_seeds():
    two = [result(seed=0, test=[0.2, 0.4, 0.6]), result(seed=1, test=[0.4, 0.4, 0.8])]
    test, memorised = lines(learning_curves(two, TASKS[0]), "CE")
    assert test.x == (1, 2, 4)
    assert test.y == pytest.approx((30, 40, 70))
    assert memorised.y == pytest.approx((0, 10, 20))


def test_learning_curves_are_of_the_published_scale_by_default():
    (test, _) = lines(learning_curves(results(), TASKS[0]), "CE")
    assert [row[1] for row in test.customdata] == [3, 3, 3]


def test_a_diverged_training_leaves_the_mean_where_it_ends():
    early = result(seed=1, steps=(10,), test=[0.4], clean=[0.1], diverged=True)
    test, _ = lines(learning_curves([result(test=[0.2, 0.4, 0.6]), early], TASKS[0]), "CE")
    assert test.y == pytest.approx((30, 40, 60))
    assert [row[1] for row in test.customdata] == [2, 1, 1]


def test_nothing_memorised_leaves_one_panel():
    bare = result()
    curve = tuple(dataclasses.replace(moment, memorised=None) for moment in bare.curve)
    figure = learning_curves([dataclasses.replace(bare, curve=curve)], TASKS[0])
    assert len(figure.layout.annotations) == 1


def test_a_task_without_trainings_is_an_error():
    with pytest.raises(ValueError, match="no native training on elsewhere"):
        learning_curves(results(), "elsewhere")


# --- Drive ---


def test_cumulative_lr_is_scale_times_learning_rate_times_steps():
    figure = accuracy_against_cumulative_lr([result(scale=0.1), result(scale=1.0)], TASKS[0])
    (line,) = lines(figure, "CE")
    assert [x and pytest.approx(x) for x in line.x] == [0.1, 0.2, 0.4, None, 1, 2, 4, None]
    assert figure.layout.xaxis.type == "log"


def test_the_stopping_point_is_that_of_the_best_clean_validation():
    rows = [result(scale=0.1), result(scale=1.0, clean=[0.3, 0.4, 0.8])]
    figure = accuracy_against_cumulative_lr(rows, TASKS[0])
    (stop,) = [trace for trace in figure.data if trace.mode == "markers"]
    assert (stop.x[0], stop.y[0]) == pytest.approx((4, 50))


def test_cumulative_lr_points_are_means_over_seeds_then_tasks():
    rows = [
        result(task="a", seed=0, test=[0, 0, 0.2]),
        result(task="a", seed=1, test=[0, 0, 0.4]),
        result(task="b", seed=0, steps=(40, 80, 160), test=[0, 0, 0.9]),
    ]
    (line,) = lines(accuracy_against_cumulative_lr(rows), "CE")
    assert line.y[-2] == pytest.approx(60)
    assert line.x[-2] == pytest.approx(8)  # √(4 · 16)


def test_a_method_that_lacks_a_task_has_no_mean_over_tasks():
    rows = [result(m, task=t) for m, t in (("ce", "a"), ("gce", "a"), ("ce", "b"), ("mae", "b"))]
    figure = accuracy_against_cumulative_lr(rows)
    assert lines(figure, "CE")
    assert not lines(figure, "GCE")
    assert not lines(figure, "MAE")


def test_the_mean_is_over_the_tasks_where_scales_were_tried():
    rows = [result(task=t, scale=s) for t, s in (("a", 1.0), ("b", 1.0), ("b", 0.1))]
    figure = accuracy_against_cumulative_lr(rows)
    assert "mean over 1 tasks" in figure.layout.title.text
    (line,) = lines(figure, "CE")
    assert line.x.count(None) == 2


def test_moments_after_a_seed_diverged_are_left_out():
    early = result(seed=1, steps=(10,), test=[0.1], clean=[0.1], diverged=True)
    (line,) = lines(accuracy_against_cumulative_lr([result(), early], TASKS[0]), "CE")
    assert line.x == (pytest.approx(1), None)


def test_a_method_has_one_colour_in_all_figures():
    looks = styles(METHODS)
    figures = [
        accuracy_against_noise(measured(), RATES, method_styles=looks),
        learning_curves(results(), TASKS[0], method_styles=looks),
        accuracy_against_cumulative_lr(results(), TASKS[0], method_styles=looks),
    ]
    for method, name in zip(METHODS, ("CE", "GCE", "ar_sym80"), strict=True):
        colours = {line.line.color for figure in figures for line in lines(figure, name)}
        assert colours == {looks[method].colour}
