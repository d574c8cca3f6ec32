"""Compare a kernel with what users have today: check first, then time both interleaved in one process.

A wrong result is never timed, and neither is a check that cannot see a difference: each case also carries
a run on inputs that are 0.1 % off, which has to fail the same check.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

# Of one H200 as measured on the device; floors in docs/gpu.md follow from them.
H200_BYTES_PER_SECOND = 4.3e12
H200_TF32_FLOPS_PER_SECOND = 395e12

MIN_SAMPLE_SECONDS = 0.02

Result = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True)
class Case:
    """One shape of one kernel: what users run today, ours, and ours on inputs that are slightly wrong.

    `to_check` turns a result into what is compared, outside the clock. `flops` and `bytes_moved` are the least that the
    operation needs, for the floor on a GPU.
    """

    shape: str
    baseline: Callable[[], Any]
    ours: Callable[[], Any]
    perturbed: Callable[[], Any]
    to_check: Callable[[Any], Result] = lambda result: result
    tolerance: float = 1e-5
    flops: float = 0.0
    bytes_moved: float = 0.0


@dataclass(frozen=True)
class Row:
    """The outcome of one case; `max_error` is relative to the largest value of the baseline's result."""

    shape: str
    ratio: float
    max_error: float
    perturbed_error: float
    baseline_ms: float
    ours_ms: float
    floor_ms: float


class WrongResultError(AssertionError):
    """Ours disagrees with the baseline, or the check is blind; nothing was timed."""


def compare(case: Case, device: torch.device, repeats: int = 5) -> Row:
    """Check, then time. Raises WrongResultError before any timing."""
    expected = case.to_check(case.baseline())
    error = max_error(case.to_check(case.ours()), expected)
    if not error <= case.tolerance:
        raise WrongResultError(f"{case.shape}: off by {error:.2e}, tolerance {case.tolerance:.0e}")
    perturbed_error = max_error(case.to_check(case.perturbed()), expected)
    if not case.tolerance < perturbed_error < float("inf"):
        raise WrongResultError(f"{case.shape}: the check does not see a 0.1 % perturbation ({perturbed_error:.2e})")
    baseline_ms, ours_ms = time_interleaved((case.baseline, case.ours), device, repeats)
    floor_s = max(case.flops / H200_TF32_FLOPS_PER_SECOND, case.bytes_moved / H200_BYTES_PER_SECOND)
    return Row(case.shape, baseline_ms / ours_ms, error, perturbed_error, baseline_ms, ours_ms, floor_s * 1e3)


def max_error(actual: Result, expected: Result) -> float:
    """Largest absolute difference over largest absolute expected value, the worst over all tensors; infinite where
    shapes differ."""
    pairs = zip(_as_tuple(actual), _as_tuple(expected), strict=True)
    return float(torch.tensor([_relative_error(a, e) for a, e in pairs]).max())  # max() of torch keeps a NaN


def _relative_error(actual: Tensor, expected: Tensor) -> float:
    if actual.shape != expected.shape:  # a difference would broadcast them
        return float("inf")
    actual, expected = actual.double().cpu(), expected.double().cpu()
    difference = (actual - expected).abs().max()
    return float(difference / expected.abs().max().clamp(min=torch.finfo(torch.float64).tiny))


def _as_tuple(result: Result) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else result


def time_interleaved(runs: tuple[Callable[[], Any], ...], device: torch.device, repeats: int) -> list[float]:
    """Best time of each run in ms: process CPU time on the CPU (neighbours do not count), events on CUDA."""
    sample = _cuda_seconds if device.type == "cuda" else _cpu_seconds
    counts = [max(1, int(MIN_SAMPLE_SECONDS / max(sample(run, 1), 1e-9))) for run in runs]
    best = [float("inf")] * len(runs)
    for _ in range(repeats):
        for i, (run, count) in enumerate(zip(runs, counts, strict=True)):
            best[i] = min(best[i], sample(run, count) / count)
    return [seconds * 1e3 for seconds in best]


def _cpu_seconds(run: Callable[[], Any], count: int) -> float:
    start = time.process_time()
    for _ in range(count):
        run()
    return time.process_time() - start


def _cuda_seconds(run: Callable[[], Any], count: int) -> float:
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(count):
        run()
    stop.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(stop)) / 1e3


def main(op: str, baseline: str, cases: Callable[[torch.device], Iterator[Case]]) -> None:
    """Command line of every bench, `[--json] [--device cuda]`; the first case is the headline."""
    parser = argparse.ArgumentParser(description=f"Compare {op} with {baseline}.")
    parser.add_argument("--json", action="store_true", help="print one JSON line instead of a table")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--repeats", type=int, default=5, help="samples of each side, of which the best counts")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    device = torch.device(arguments.device)
    with torch.no_grad():
        rows = [compare(case, device, arguments.repeats) for case in cases(device)]
    print(json.dumps(_summary(op, baseline, device, rows)) if arguments.json else _table(op, baseline, rows))


def _summary(op: str, baseline: str, device: torch.device, rows: list[Row]) -> dict[str, Any]:
    head = rows[0]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu, 1 thread"
    shapes = [{key: _round(value) for key, value in asdict(row).items()} for row in rows]
    return {"op": op, "baseline": baseline, "shape": head.shape, "ratio": _round(head.ratio),
            "max_error": _round(head.max_error), "device": name, "shapes": shapes}  # fmt: skip


def _round(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _table(op: str, baseline: str, rows: list[Row]) -> str:
    lines = [f"{op} against {baseline}"]
    for row in rows:
        times = f"{row.baseline_ms:10.3f} ms -> {row.ours_ms:9.3f} ms"
        lines.append(f"  {row.shape:<44} {times}  x{row.ratio:<7.2f} error {row.max_error:.1e}")
    return "\n".join(lines)
