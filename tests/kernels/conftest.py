"""Every kernel test draws the same numbers, over uninitialised memory full of NaN: a result nobody wrote is seen."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _same_draws_over_poisoned_memory() -> Iterator[None]:
    torch.manual_seed(0)
    torch.set_deterministic_debug_mode("error")  # on, this fills every torch.empty with NaN
    yield
    torch.set_deterministic_debug_mode("default")


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(42)
