"""Loading adapters from disk into a bank against PEFT: `python -m kernels.bank.bench [--json]`."""

# K adapters

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor

from kernels.bank import Bank, new_bank, write_slot
from kernels.bench import Case, main
from kernels.bench_models import QV, add_adapters, new_m6

BASELINE = "PEFT load_adapter, one after the other"


def peft_load(backbone: Any, folders: list[Path], low_memory: bool) -> Any:
    """PEFT changes the backbone in place: the adapters of the run before go first, at next to no cost."""
    if hasattr(backbone, "peft_config"):
        del backbone.peft_config
    for module in [m for m in backbone.modules() if hasattr(m, "query")]:
        module.query, module.value = _bare(module.query), _bare(module.value)
    model = PeftModel.from_pretrained(backbone, str(folders[0]), adapter_name="a0", low_cpu_mem_usage=low_memory)
    for k, folder in enumerate(folders[1:], 1):
        model.load_adapter(str(folder), adapter_name=f"a{k}", low_cpu_mem_usage=low_memory)
    return model


def _bare(linear: Any) -> Any:
    return linear.base_layer if hasattr(linear, "base_layer") else linear


def bank_load(folders: list[Path], scale: float, device: torch.device) -> Bank:
    """safetensors maps the file, so a slot is written by one copy from the page cache."""
    bank = new_bank(_read(folders[0]), len(folders), device)
    for slot, folder in enumerate(folders):
        write_slot(bank, slot, _read(folder))
    if scale != 1:
        bank = {name: stack * scale for name, stack in bank.items()}
    return bank


def _read(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def to_tensors(loaded: Any) -> tuple[Tensor, ...]:
    """All adapters, stacked by tensor in the order of names, from either side."""
    if isinstance(loaded, dict):
        return tuple(loaded[name] for name in sorted(loaded))
    state, num = loaded.state_dict(), len(loaded.peft_config)
    names = sorted(name for name in state if ".a0." in name)
    return tuple(torch.stack([state[name.replace(".a0.", f".a{k}.")] for k in range(num)]) for name in names)


def cases(device: torch.device) -> Iterator[Case]:
    with tempfile.TemporaryDirectory() as home:
        model = add_adapters(new_m6(), 64, QV)
        model.save_pretrained(home)
        folders = [Path(home) / f"a{k}" for k in range(64)]
        for num, low_memory in [(64, False), (64, True), (16, False), (4, False)]:
            yield Case(
                f"K={num}, M6 query and value, r=8{', low_cpu_mem_usage' if low_memory else ''}",
                partial(peft_load, new_m6(), folders[:num], low_memory),
                partial(bank_load, folders[:num], 1.0, device),
                partial(bank_load, folders[:num], 1.001, device),
                to_tensors,
                tolerance=0.0,
            )


if __name__ == "__main__":
    main("bank", BASELINE, cases)
