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

    `types` gives Triton types of the arguments that are not constants, in order: "*fp32", "i32", "fp32".
    """

    kernel: Any
    types: str
    constants: Mapping[str, int | str | bool]
    num_warps: int = 4
    num_stages: int = 2
    uses_tensor_cores: bool = True

    @property
    def options(self) -> dict[str, Any]:
        """What a launch passes by keyword, so that what is launched is what was compiled here."""
        return {**self.constants, "num_warps": self.num_warps, "num_stages": self.num_stages}


@dataclass(frozen=True)
class Usage:
    """What one compiled kernel takes; `stack` bytes above 0 are spilled registers."""

    registers: int
    stack: int
    tensor_core_instructions: int
    sass: str = field(repr=False)


def compile_for(config: Config, capability: int) -> Usage:
    """Compile for sm_<capability> with the bundled ptxas. Raises triton.CompilationError with the line at fault."""
    names = [name for name in config.kernel.arg_names if name not in config.constants]
    types = dict(zip(names, config.types.split(), strict=True))
    signature = {name: types.get(name, "constexpr") for name in config.kernel.arg_names}
    # Pointers from torch's allocators are aligned, so this is what the launch specialises to.
    aligned = {(i,): [["tt.divisibility", 16]] for i, type_ in enumerate(signature.values()) if type_.startswith("*")}
    source = ASTSource(config.kernel, signature, dict(config.constants), aligned)
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    return _usage(compiled.asm["cubin"])


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
