import json
import subprocess
import sys
from importlib import import_module

import pytest
import torch

from kernels import bench_all
from kernels.bench import Case, WrongResultError, compare, max_error

CPU = torch.device("cpu")


def case(ours, perturbed):
    return Case("n=1", lambda: torch.ones(3), lambda: ours * torch.ones(3), lambda: perturbed * torch.ones(3))


def test_a_right_result_is_timed():
    row = compare(case(1.0, 1.001), CPU, repeats=1)
    assert row.ratio > 0
    assert row.max_error == 0
    assert row.perturbed_error == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize(("ours", "perturbed"), [(1.1, 1.2), (float("nan"), 1.2)])
def test_a_wrong_result_is_not_timed(ours, perturbed):
    with pytest.raises(WrongResultError, match="n=1: off by"):
        compare(case(ours, perturbed), CPU)


def test_nan_in_a_later_tensor_is_an_error():
    good, bad = torch.ones(2), torch.full((2,), float("nan"))
    assert not max_error((good, bad), (good, good)) <= 1


def test_a_result_of_another_shape_is_an_error():
    assert max_error(torch.ones(1), torch.ones(3)) == max_error(torch.ones(3, 1), torch.ones(3)) == float("inf")


@pytest.mark.parametrize("perturbed", [1.0, float("nan"), float("inf")])
def test_a_blind_check_is_not_trusted(perturbed):
    with pytest.raises(WrongResultError, match="does not see"):
        compare(case(1.0, perturbed), CPU)


def test_a_bench_that_fails_says_why(capfd):
    with pytest.raises(subprocess.CalledProcessError):
        bench_all.run("nothing", "cpu")
    assert "No module named 'kernels.nothing'" in capfd.readouterr().err


def test_every_op_has_its_files():
    folders = {path.name: path for path in bench_all.Path(bench_all.__file__).parent.iterdir() if path.is_dir()}
    folders.pop("__pycache__", None)
    assert set(bench_all.ops()) == set(folders)
    for op, path in folders.items():
        forms = {form for form in ("reference.py", "cpu.py") if (path / form).exists()}
        assert forms == {"reference.py", "cpu.py"} or op == "bank"


def test_a_bench_prints_one_line_of_json_with_what_is_documented():
    command = [sys.executable, "-m", "kernels.ema.bench", "--json", "--repeats", "1"]
    (line,) = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    result = json.loads(line)
    assert result.keys() >= {"op", "baseline", "shape", "ratio", "max_error", "device"}
    assert (result["op"], result["device"]) == ("ema", "cpu, 1 thread")
    headline = result["shapes"][0]
    assert {name: result[name] for name in ("shape", "ratio", "max_error")}.items() <= headline.items()
    assert result["ratio"] > 0
    assert 0 <= result["max_error"] < headline["perturbed_error"]


@pytest.mark.parametrize("op", bench_all.ops())
def test_every_bench_has_cases(op):
    assert callable(import_module(f"kernels.{op}.bench").cases)


def test_the_table_has_a_line_for_each_shape():
    row = {"shape": "n=1", "baseline_ms": 2.0, "ours_ms": 1.0, "ratio": 2.0, "max_error": 0.0, "floor_ms": 0.5}
    lines = bench_all.table([{"op": "x", "device": "d", "shapes": [row, row]}]).splitlines()
    assert lines[-1] == lines[-2] == "| x | n=1 | 2 | 1 | 2 | 0.0e+00 | 0.50 |"
