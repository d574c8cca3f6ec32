from importlib import import_module
from pathlib import Path

import pytest

import kernels

pytest.importorskip("triton")
aot = pytest.importorskip("kernels.aot")

FORMS = sorted(path.parent.name for path in Path(kernels.__path__[0]).glob("*/triton.py"))
SHIPPED = [(op, i) for op in FORMS for i in range(len(import_module(f"kernels.{op}.triton").SHIPPED))]


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("op", "index"), SHIPPED)
def test_shipped_configuration_compiles_without_spills(op, index, capability):
    config = import_module(f"kernels.{op}.triton").SHIPPED[index]
    usage = aot.compile_for(config, capability)
    assert usage.stack == 0
    assert (usage.tensor_core_instructions > 0) == config.uses_tensor_cores
    assert ("HGMMA" in usage.sass) == (config.uses_tensor_cores and capability == 90)
