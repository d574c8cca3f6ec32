"""The benchmark runs every method on a stream with recurring looks, and says what it decided."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.continual import METHODS, run_method
from benchmarks.continual_default import SHAPING
from benchmarks.continual_stream import load_stream, split_rows


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
def test_every_method_reports_every_figure(stream: Path, folders: dict[str, Path], method: str) -> None:
    result = run_method(str(stream), str(folders["vit"]), method, 1)
    matrix = result["matrix"]
    assert isinstance(matrix, list)
    assert [len(row) for row in matrix] == [1, 2, 3]
    assert isinstance(result["last"], float)
    assert 0 <= result["last"] <= 1
    assert isinstance(result["block_forwards"], float)
    assert result["block_forwards"] >= 4


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


def test_held_out_rows_are_a_share_of_every_class() -> None:
    train, held_out = split_rows(["a"] * 10 + ["b"] * 20, seed=1)
    assert sorted(train + held_out) == list(range(30))
    assert sum(i < 10 for i in held_out) == 2
    assert len(held_out) == 6
