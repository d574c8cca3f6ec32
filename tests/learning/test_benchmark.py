"""The benchmark runs every method on a stream with recurring looks, and says what it decided."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.continual import METHODS, main, run_method
from benchmarks.continual_default import SHAPING
from benchmarks.continual_stream import load_stream, split_rows

UNDECIDED = ("probe", "sequential", "joint")  # they measure no shift


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes in three batches: bright squares, the same inverted, and the first look again."""
    rng = np.random.default_rng(0)
    images, labels, batches = [], [], []
    for batch in range(3):
        for row in range(80):
            image = rng.integers(0, 60, (3, 16, 16), dtype=np.uint8)
            image[:, :, :8] += np.uint8(150 * (row % 2))
            images.append(255 - image if batch == 1 else image)
            labels.append(row % 2)
            batches.append(batch)
    x, y, t = np.stack(images), np.array(labels), np.array(batches)
    path = tmp_path_factory.mktemp("stream") / "stream.npz"
    np.savez(path, x_train=x, y_train=y, task_train=t, x_test=x[::4], y_test=y[::4], task_test=t[::4])
    return path


@pytest.mark.parametrize("method", METHODS)
def test_every_method_reports_every_figure(
    stream: Path, folders: dict[str, Path], method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--data", str(stream), "--backbone", str(folders["vit"]), "--method", method, "--seed", "2", "--json"])
    (line,) = capsys.readouterr().out.splitlines()
    result = json.loads(line)
    assert (result["method"], result["seed"]) == (method, 2)
    matrix = result["matrix"]
    assert [len(row) for row in matrix] == [1, 2, 3]
    assert all(0 <= value <= 1 for row in matrix for value in row)
    assert result["last"] == pytest.approx(sum(matrix[2]) / 3)  # as many test rows in each batch
    assert result["average"] == pytest.approx(sum(sum(row) / len(row) for row in matrix) / 3)
    assert result["forgetting"] <= 1
    blocks = {"probe": 0, "sema": 4}.get(method, 3)
    assert len(result["adapters_by_layer"]) == blocks
    assert (result["trainable_parameters"] > 0) == (method != "probe")
    assert result["block_forwards"] >= 4
    assert (result["block_backwards"] > 0) == (method != "probe")
    assert result["train_seconds"] > 0
    assert result["inference_seconds"] > 0
    assert len(result["decisions"]) == 3
    assert all(each.keys() >= {"decision", "p_value", "z_scores", "adapter"} for each in result["decisions"])
    assert all((each["decision"] is None) == (method in UNDECIDED) for each in result["decisions"])


def test_the_default_expands_for_a_new_look_and_reuses_for_an_old_one(stream: Path, folders: dict[str, Path]) -> None:
    result = run_method(str(stream), str(folders["vit"]), "default", 1)
    decisions = result["decisions"]
    assert isinstance(decisions, list)
    assert [each["decision"] for each in decisions] == ["expand", "expand", "reuse"]
    assert decisions[2]["adapter"] == "adapter-0"
    trained = 2 / 3 * SHAPING * 2  # the share of batches that expand, of their rows, and the blocks after the first
    assert result["block_forwards"] == pytest.approx(4 + 2 + trained)
    assert result["block_backwards"] == pytest.approx(trained)


def test_batches_without_a_task_column_hold_four_classes(tmp_path: Path) -> None:
    x, y = np.zeros((16, 3, 8, 8), np.uint8), np.arange(16) // 2
    np.savez(tmp_path / "s.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    assert [sorted(set(batch.train_labels)) for batch in load_stream(str(tmp_path / "s.npz"))] == [
        ["00000", "00001", "00002", "00003"],
        ["00004", "00005", "00006", "00007"],
    ]


def test_the_file_says_how_many_classes_a_batch_holds(tmp_path: Path) -> None:
    x, y = np.zeros((16, 3, 8, 8), np.uint8), np.arange(16) // 2
    np.savez(tmp_path / "s.npz", x_train=x, y_train=y, x_test=x, y_test=y, classes_per_task=3)
    assert [len(set(batch.test_labels)) for batch in load_stream(str(tmp_path / "s.npz"))] == [3, 3, 2]


def test_held_out_rows_are_a_share_of_every_class() -> None:
    train, held_out = split_rows(["a"] * 10 + ["b"] * 20, seed=1)
    assert sorted(train + held_out) == list(range(30))
    assert sum(i < 10 for i in held_out) == 2
    assert len(held_out) == 6
