import re
from importlib import import_module
from pathlib import Path

import pytest

import kernels

pytest.importorskip("triton")
from kernels.aot import compile_for, specialised
from kernels.dispatch import TRITON_DTYPES

FORMS = sorted(path.parent.name for path in Path(kernels.__path__[0]).glob("*/triton.py"))
SHIPPED = [(op, i) for op in FORMS for i in range(len(import_module(f"kernels.{op}.triton").SHIPPED))]


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("op", "index"), SHIPPED)
def test_shipped_configuration_compiles_without_spills(op, index, capability, aligned):
    config = import_module(f"kernels.{op}.triton").SHIPPED[index]
    usage = compile_for(config, capability, aligned)
    assert usage.stack == 0
    assert not re.search(r"\bFMNMX\b(?!\.NAN)", usage.sass)  # it drops NaN, which the interpreter keeps
    assert (usage.tensor_core_instructions > 0) == config.uses_tensor_cores
    assert ("HGMMA" in usage.sass) == (config.uses_tensor_cores and capability == 90)


@pytest.mark.parametrize("op", FORMS)
def test_every_type_that_is_launched_is_compiled(op):
    shipped = import_module(f"kernels.{op}.triton").SHIPPED
    elements = {type_.strip("*") for config in shipped for type_ in config.types.split()}
    assert op == "mmd_perm" or elements >= set(TRITON_DTYPES.values())  # mmd_perm computes in float32 whatever comes


@pytest.mark.parametrize("aligned", [False, True])
def test_strides_of_one_and_sizes_known_to_be_multiples_are_compiled_in(aligned):
    config = import_module("kernels.grouped_lora.triton").SHIPPED[0]
    signature, constants, divisible = specialised(config, aligned)
    assert [constants[name] for name in config.units] == [1, 1]
    assert {signature[name] for name in config.units} == {"constexpr"}
    assert ((list(signature).index("dim_in"),) in divisible) == aligned
