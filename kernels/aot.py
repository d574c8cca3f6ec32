"""Compile Triton kernels ahead of time, without a GPU, and read from the cubin what they would use on one."""

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


@dataclass(frozen=True)
class Config:
    """One shipped configuration: the kernel, its block sizes and launch options.

    `types` gives Triton types of the arguments that are not constants, in order: "*fp32", "i32", "fp32"; `units` names
    the strides among them that every launch passes as 1, which Triton then compiles in.
    """

    kernel: Any
    types: str
    constants: Mapping[str, int | str | bool]
    num_warps: int = 4
    num_stages: int = 2
    uses_tensor_cores: bool = True
    units: tuple[str, ...] = ()

    @property
    def options(self) -> dict[str, Any]:
        """What a launch passes by keyword: the constants and options that were compiled here.

        Triton looks at sizes too: each that is a multiple of 16 is compiled anew as such, each that is 1 as a constant.
        `compile_for` compiles the two ends, all sizes such multiples and none; not every mixture.
        """
        return {**self.constants, "num_warps": self.num_warps, "num_stages": self.num_stages}


@dataclass(frozen=True)
class Usage:
    """What one compiled kernel takes; `stack` bytes above 0 are spilled registers."""

    registers: int
    stack: int
    tensor_core_instructions: int
    sass: str = field(repr=False)


def compile_for(config: Config, capability: int, aligned: bool) -> Usage:
    """Compile for sm_<capability> with the bundled ptxas, for sizes that are multiples of 16 or are anything.

    Raises triton.CompilationError with the line at fault.
    """
    source = ASTSource(config.kernel, *specialised(config, aligned))
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    return _usage(compiled.asm["cubin"])


def specialised(config: Config, aligned: bool) -> tuple[dict[str, str], dict[str, Any], dict[Any, Any]]:
    """Types, constants and known divisibility of the arguments, as a launch works them out from what it is passed."""
    names = [name for name in config.kernel.arg_names if name not in config.constants]
    types = dict(zip(names, config.types.split(), strict=True))
    types.update(dict.fromkeys(config.units, "constexpr"))
    signature = {name: types.get(name, "constexpr") for name in config.kernel.arg_names}
    # Pointers from torch's allocators are aligned, whatever the sizes are.
    known = ("*", "i") if aligned else ("*",)
    divisible = {(i,): [["tt.divisibility", 16]] for i, t in enumerate(signature.values()) if t.startswith(known)}
    return signature, {**config.constants, **dict.fromkeys(config.units, 1)}, divisible


def _usage(cubin: bytes) -> Usage:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        resources = _cuobjdump("--dump-resource-usage", file.name)
        sass = _cuobjdump("--dump-sass", file.name)
    registers, stack = (int(re.search(rf"{key}:(\d+)", resources)[1]) for key in ("REG", "STACK"))  # type: ignore[index]
    return Usage(registers, stack, len(re.findall(r"\bH(?:G)?MMA\.", sass)), sass)


def _cuobjdump(option: str, path: str) -> str:
    return subprocess.run([CUOBJDUMP, option, path], check=True, capture_output=True, text=True).stdout
