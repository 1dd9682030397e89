"""The tables of ``ranking.py``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr

from optuna_robustloss.training.stopping import chance_threshold

Record = dict[str, Any]
Curves = np.ndarray
#: Shares of a training at which it is looked at.
SHARES = (0.04, 0.07, 0.11, 0.14, 0.18, 0.25, 0.36, 0.5, 0.61, 0.75, 0.86)

#: Signals by name, from the validation and the noisy curves (K, moments) up to now.
SIGNALS: dict[str, Callable[[Curves, Curves], Curves]] = {
    "accuracy": lambda clean, noisy: clean[:, -1],
    "mean of last 3": lambda clean, noisy: clean[:, -3:].mean(1),
    "slope": lambda clean, noisy: clean[:, -1] - clean[:, -min(4, clean.shape[1])],
    "accuracy + slope": lambda clean, noisy: 2 * clean[:, -1] - clean[:, -min(4, clean.shape[1])],
    "noisy labels": lambda clean, noisy: noisy[:, -1],
    "clean − noisy": lambda clean, noisy: clean[:, -1] - noisy[:, -1],
}


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's; 0 if one of the two is constant."""
    if len(set(a)) < 2 or len(set(b)) < 2:
        return 0.0
    return float(spearmanr(a, b).statistic)


def curves_of(record: Record, name: str) -> Curves:
    """Array ``(K, moments)`` of one kind of accuracy."""
    return np.array([curve[name] for curve in record["curves"]])


def print_tables(records: list[Record], variants: Sequence[str]) -> None:
    """Print everything that the records say."""
    console = Console(width=140)
    for variant in variants:
        own = [r for r in records if r["variant"] == variant]
        for task in dict.fromkeys(r["task"] for r in own):
            of_task = [r for r in own if r["task"] == task]
            console.print(signal_table(of_task, f"{task} {variant}"))
            console.print(chance_table(of_task, f"{task} {variant}"))
        console.print(pruning_table(own, f"mean over networks {variant}"))
    if len(variants) > 1:
        console.print(variant_table(records, variants))


def _moment(share: float, count: int) -> int:
    return max(1, round(share * count))


def signal_table(records: list[Record], title: str) -> Table:
    """Rank correlation of early signals with the accuracy at the end, per generation, averaged."""
    table = Table("share of steps", *SIGNALS, title=f"{title}: Spearman with the end (lowest)")
    for share in SHARES:
        cells = []
        for signal in SIGNALS.values():
            values = []
            for record in records:
                clean, noisy = curves_of(record, "validation"), curves_of(record, "noisy")
                now = _moment(share, clean.shape[1])
                values.append(
                    rank_correlation(signal(clean[:, :now], noisy[:, :now]), clean[:, -1])
                )
            cells.append(f"{np.mean(values):.2f} ({np.min(values):.2f})")
        table.add_row(f"{share:.0%}", *cells)
    return table


def chance_table(records: list[Record], title: str) -> Table:
    """Candidates near chance at each moment, and those among them that end in the better half."""
    table = Table(
        "share of steps", "near chance", "of these learn", "of these in the better half",
        title=f"{title}: candidates below 1.5 × chance",
    )  # fmt: skip
    for share in SHARES:
        near, learn, good, count = 0, 0, 0, 0
        for record in records:
            clean = curves_of(record, "validation")
            threshold = chance_threshold(record["classes"])
            low = clean[:, _moment(share, clean.shape[1]) - 1] < threshold
            end = clean[:, -1]
            near += int(low.sum())
            learn += int((low & (end >= threshold)).sum())
            good += int((low & (end >= threshold) & (end > np.median(end))).sum())
            count += len(end)
        table.add_row(f"{share:.0%}", f"{near} of {count}", str(learn), str(good))
    return table


def by_generation(records: list[Record]) -> dict[int, list[Record]]:
    """Records of one variant by generation, the tasks in order."""
    result: dict[int, list[Record]] = {}
    for record in records:
        result.setdefault(record["generation"], []).append(record)
    return result


def pruning_table(records: list[Record], title: str) -> Table:
    """How the mean over networks so far ranks as the mean over all at the end.

    ``lost`` is the share of the worst third at that moment that ends in the better half.
    """
    table = Table("networks trained", "Spearman (lowest)", "lost", title=f"{title}: pruning")
    tasks = max((len(g) for g in by_generation(records).values()), default=0)
    for position in range(tasks):
        for share in (*SHARES, 1.0):
            values, lost = [], []
            for group in by_generation(records).values():
                if len(group) < tasks:
                    continue
                arrays = [curves_of(r, "validation") for r in group]
                final = np.mean([a[:, -1] for a in arrays], axis=0)
                now = arrays[position][:, _moment(share, arrays[position].shape[1]) - 1]
                mean = np.mean([*[a[:, -1] for a in arrays[:position]], now], axis=0)
                values.append(rank_correlation(mean, final))
                worst = np.argsort(mean)[: len(mean) // 3]
                lost.append(float((final[worst] > np.median(final)).mean()))
            if values:
                table.add_row(
                    f"{position + share:.2f}",
                    f"{np.mean(values):.2f} ({np.min(values):.2f})",
                    f"{np.mean(lost):.0%}",
                )
    return table


def variant_table(records: list[Record], variants: Sequence[str]) -> Table:
    """How each variant ranks the candidates beside the first."""
    table = Table(
        "variant", "task", "candidates", "Spearman per generation", "pooled, centred",
        "mean accuracy: first / variant", "seconds per candidate: first / variant",
        title=f"against {variants[0] or 'the recipe as it is'}",
    )  # fmt: skip
    index = {(r["variant"], r["task"], r["generation"]): _ends(r) for r in records}
    seconds = {(r["variant"], r["task"], r["generation"]): r["seconds"] for r in records}
    for variant in variants[1:]:
        tasks = list(dict.fromkeys(r["task"] for r in records if r["variant"] == variant))
        for own in [*([task] for task in tasks), tasks if len(tasks) > 1 else []]:
            shared = [
                g
                for g in dict.fromkeys(r["generation"] for r in records)
                if own and all((v, t, g) in index for v in (variants[0], variant) for t in own)
            ]
            if not shared:
                continue
            ends = [
                [np.mean([index[v, t, g] for t in own], axis=0) for g in shared]
                for v in (variants[0], variant)
            ]
            each = [rank_correlation(a, b) for a, b in zip(*ends, strict=True)]
            centred = [np.concatenate([e - e.mean() for e in side]) for side in ends]
            count = len(centred[0])
            means = [float(np.mean(np.concatenate(side))) for side in ends]
            taken = [
                sum(seconds[v, t, g] for t in own for g in shared) / count
                for v in (variants[0], variant)
            ]
            table.add_row(
                variant, own[0] if len(own) == 1 else "mean over networks", str(count),
                " ".join(f"{v:.2f}" for v in each), f"{rank_correlation(*centred):.2f}",
                " / ".join(f"{m:.3f}" for m in means), " / ".join(f"{s:.1f}" for s in taken),
            )  # fmt: skip
    return table


def _ends(record: Record) -> Curves:
    return curves_of(record, "validation")[:, -1]
