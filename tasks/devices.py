"""What trains in this process, and by which name the bytes that it makes are known."""

import os

import torch

from infra.settings import settings
from registry.errors import StateError

CPU = "cpu"
# cuBLAS repeats its bytes only with a workspace of a fixed size, and reads this when it starts
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def training_device() -> torch.device:
    """The device of DECIDUOUS_DEVICE; `auto` is a GPU where torch sees one. Raises StateError where it is not there."""
    asked = settings().device
    seen = torch.cuda.device_count()
    if asked == "auto":
        return torch.device("cuda" if seen else CPU)
    device = torch.device(asked)
    if device.type == "cuda" and seen <= (device.index or 0):
        raise StateError(
            f"DECIDUOUS_DEVICE is {asked!r} and torch {torch.__version__} sees {seen} GPUs here; give this worker one, "
            "install a torch that is built for its driver, or set DECIDUOUS_DEVICE=cpu"
        )
    return device


def device_name(device: torch.device) -> str:
    """'cpu', or the model of the GPU: another model makes other bytes."""
    return CPU if device.type == CPU else f"cuda {torch.cuda.get_device_name(device)}"


def require_repeatable(device: torch.device) -> None:
    """Let torch choose only operations that repeat their bytes; on a GPU it raises where an operation has none."""
    if device.type == "cuda":
        torch.use_deterministic_algorithms(True)


def require_gpus(processes: int) -> None:
    """Raises StateError where fewer GPUs are there than processes that want one each."""
    seen = torch.cuda.device_count()
    if processes > seen:
        raise StateError(
            f"tasks.processes is {processes}, and this worker sees {seen} GPUs; lower it, give the worker more, or set "
            "DECIDUOUS_DEVICE=cpu to share the CPU"
        )
