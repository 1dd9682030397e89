"""What the Taylor loss costs beside ``F.cross_entropy``: forward and backward, time and memory."""

from __future__ import annotations

import gc
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import torch
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from benchmarks.quartiles import Quartiles
from optuna_robustloss.losses import TaylorLoss
from optuna_robustloss.losses.taylor.gradient import TaylorGradient

SHAPES = ((128, 10), (128, 100), (512, 1000), (4096, 10))
POPULATIONS = (1, 8, 16, 32)
VARIABLES = ("probability", "log")
#: Seconds of each side in one round: enough calls to tell the two apart.
ROUND = 0.004
WARM_UP = 5

Step = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """One comparison: seconds of one forward and backward pass, peak bytes beside the logits."""

    device: str
    what: str
    against: str
    shape: tuple[int, ...]
    variable: str
    ours: Quartiles
    theirs: Quartiles
    ratio: Quartiles
    our_bytes: int
    their_bytes: int


def generic_loss(num_classes: int, variable: str) -> TaylorLoss:
    """Return a loss none of whose coefficients is zero."""
    theta = torch.randn(12, generator=torch.Generator().manual_seed(3)).tolist()
    return TaylorLoss(theta, num_classes, variable=variable)


def batch(device: str, *shape: int) -> tuple[Tensor, Tensor]:
    """Return logits ``(..., C)`` and labels for their last but one dimension."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(shape, generator=generator)
    target = torch.randint(shape[-1], shape[-2:-1], generator=generator)
    return logits.to(device), target.to(device)


def forward_and_backward(
    criterion: Callable[[Tensor, Tensor], Tensor], logits: Tensor, target: Tensor
) -> Step:
    leaf = logits.clone().requires_grad_()

    def step() -> None:
        criterion(leaf, target).backward()
        leaf.grad = None

    return step


# Measurements


def calls_per_round(step: Step, device: str) -> int:
    for _ in range(WARM_UP):
        seconds = timed(step, 1, device)
    return max(1, round(ROUND / seconds))


def timed(step: Step, calls: int, device: str) -> float:
    """Return the seconds of one call."""
    begin = perf_counter()
    for _ in range(calls):
        step()
    if device == "cuda":
        torch.cuda.synchronize()
    return (perf_counter() - begin) / calls


def interleaved(ours: Step, theirs: Step, rounds: int, device: str) -> tuple[Quartiles, ...]:
    """Time both in turn, in each round in another order; the ratio is taken within a round."""
    calls = {step: calls_per_round(step, device) for step in (ours, theirs)}
    seconds: dict[Step, list[float]] = {ours: [], theirs: []}
    order = random.Random(0)
    gc.collect()
    for _ in range(rounds):
        for step in order.sample([ours, theirs], 2):
            seconds[step].append(timed(step, calls[step], device))
    ratios = [a / b for a, b in zip(seconds[ours], seconds[theirs], strict=True)]
    return Quartiles.of(seconds[ours]), Quartiles.of(seconds[theirs]), Quartiles.of(ratios)


def peak_bytes(step: Step, device: str) -> int:
    """Return the most memory that one call holds at a time beyond what was held before."""
    step()
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    with TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    changes = [e for e in events if e.get("name") == "[memory]"]
    held = peak = 0
    for event in sorted(changes, key=lambda e: e["ts"]):
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    return peak


@dataclass(frozen=True)
class Case:
    """Two ways to do the same, not yet measured; compilation happens in the first call."""

    device: str
    what: str
    against: str
    shape: tuple[int, ...]
    variable: str
    ours: Step
    theirs: Step

    def measure(self, rounds: int) -> Row:
        times = interleaved(self.ours, self.theirs, rounds, self.device)
        memory = [peak_bytes(step, self.device) for step in (self.ours, self.theirs)]
        named = (self.device, self.what, self.against, self.shape, self.variable)
        return Row(*named, *times, *memory)


def module_cases(device: str, shape: tuple[int, int], variable: str) -> Iterator[Case]:
    """``TaylorLoss`` as users call it, eager and compiled."""
    logits, target = batch(device, *shape)
    loss: nn.Module = generic_loss(shape[-1], variable).to(device)
    eager = forward_and_backward(loss, logits, target)
    eager_ce = forward_and_backward(F.cross_entropy, logits, target)
    compiled = forward_and_backward(torch.compile(loss), logits, target)
    compiled_ce = forward_and_backward(torch.compile(nn.CrossEntropyLoss()), logits, target)
    for what, against, ours, theirs in (
        ("eager", "eager", eager, eager_ce),
        ("compiled", "compiled", compiled, compiled_ce),
        ("compiled", "eager", compiled, eager_ce),
    ):
        yield Case(device, f"TaylorLoss, {what}", against, shape, variable, ours, theirs)


def gradient_case(device: str, population: int, variable: str) -> Case:
    """``TaylorGradient`` of a population beside cross-entropy of all its logits."""
    shape = (population, *SHAPES[0])
    logits, target = batch(device, *shape)
    loss = generic_loss(shape[-1], variable).to(device)
    p0, label_delta = (x.expand(population, -1) for x in (loss.p0, loss.label_delta))
    gradient = TaylorGradient(p0, label_delta, log=variable == "log")
    theirs = forward_and_backward(
        F.cross_entropy, logits.reshape(-1, shape[-1]), target.repeat(population)
    )

    def ours() -> Tensor:
        return gradient(logits, target)

    return Case(device, "TaylorGradient", "eager", shape, variable, ours, theirs)


def rows(quick: bool) -> list[Row]:
    """Measure everything; `quick` leaves out the log variable and takes fewer rounds.

    On the CPU in one thread: how large shapes are spread over threads is not what differs here.
    """
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    variables = VARIABLES[:1] if quick else VARIABLES
    rounds = 25 if quick else 80
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        measured = []
        for device, variable in product(devices, variables):
            for population in POPULATIONS:
                measured.append(gradient_case(device, population, variable).measure(rounds))
            for shape in track(SHAPES, f"{device}, {variable}", transient=True):
                torch.compiler.reset()  # for static shapes, as in training
                measured += [c.measure(rounds) for c in module_cases(device, shape, variable)]
        return measured
    finally:
        torch.set_num_threads(threads)


# What people see


def table(measured: Sequence[Row]) -> Table:
    """Show medians and quartiles in microseconds, their ratio, and peak memory."""
    shown = Table(
        title="forward + backward beside F.cross_entropy, "
        f"PyTorch {torch.__version__}\n(microseconds: median, quartiles; interleaved)"
    )
    for head in ("device", "what", "cross-entropy", "shape", "variable"):
        shown.add_column(head)
    for head in ("ours", "cross-entropy", "ratio", "peak KiB", "its"):
        shown.add_column(head, justify="right", no_wrap=True)
    for row in measured:
        shown.add_row(
            row.device,
            row.what,
            row.against,
            "×".join(map(str, row.shape)),
            row.variable,
            _quartiles(row.ours, 1e6, 0),
            _quartiles(row.theirs, 1e6, 0),
            _quartiles(row.ratio, 1, 2),
            f"{row.our_bytes / 1024:.0f}",
            f"{row.their_bytes / 1024:.0f}",
        )
    return shown


def _quartiles(values: Quartiles, scale: float, digits: int) -> str:
    low, middle, high = (scale * v for v in (values.low, values.median, values.high))
    return f"{middle:.{digits}f} ({low:.{digits}f} … {high:.{digits}f})"
