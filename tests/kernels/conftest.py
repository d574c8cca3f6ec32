"""Every kernel test runs with uninitialised memory full of NaN, so that a result nobody wrote is seen."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _poison_empty_tensors() -> Iterator[None]:
    torch.set_deterministic_debug_mode("error")  # on, this fills every torch.empty with NaN
    yield
    torch.set_deterministic_debug_mode("default")


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(42)
