"""The benchmark runs every method on a stream with recurring looks, and says what it decided."""

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import ViTConfig, ViTModel

from benchmarks import shift
from benchmarks.continual import METHODS, main, run_method
from benchmarks.continual_default import SHAPING
from benchmarks.continual_stream import load_stream, split_rows
from registry.errors import StreamFileError, UnsupportedBackboneError
from tests.learning.conftest import SIZES

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


@pytest.mark.parametrize("odd", [["--threads", "0"], ["--seed", str(1 << 64)]])
def test_a_number_that_torch_would_not_take_is_refused_in_one_line(
    odd: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        main(["--data", "s.npz", "--backbone", "vit", *odd])
    assert refused.value.code == 2
    assert "error: --threads is 1 or more, --seed from" in capsys.readouterr().err


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


def test_classes_are_counted_in_their_order_whatever_their_names(tmp_path: Path) -> None:
    x, y = np.zeros((12, 3, 8, 8), np.uint8), np.arange(12) // 2
    for name, labels in {"gaps": y * 7 + 3, "words": np.array([f"class {each}" for each in y])}.items():
        np.savez(tmp_path / f"{name}.npz", x_train=x, y_train=labels, x_test=x, y_test=labels)
    gaps, words = (load_stream(str(tmp_path / f"{name}.npz")) for name in ("gaps", "words"))
    assert [sorted(set(batch.train_labels)) for batch in gaps] == [
        ["00003", "00010", "00017", "00024"],
        ["00031", "00038"],
    ]
    assert [len(set(batch.test_labels)) for batch in words] == [4, 2]


@pytest.mark.parametrize("kind", [str, float, bool])
def test_classes_are_the_same_in_both_parts_whatever_their_type(tmp_path: Path, kind: type) -> None:
    x, y = np.zeros((4, 3, 8, 8), np.uint8), np.array([0, 0, 1, 1])
    np.savez(tmp_path / "s.npz", x_train=x, y_train=y, x_test=x, y_test=y.astype(kind))
    [batch] = load_stream(str(tmp_path / "s.npz"))
    assert batch.train_labels == batch.test_labels


GOOD = {
    f"{name}_{part}": array
    for part in ("train", "test")
    for name, array in {"x": np.zeros((8, 3, 8, 8), np.uint8), "y": np.arange(8)}.items()
}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"x_train": np.zeros((8, 3, 8, 8))}, "x_train is float64"),
        ({"y_train": np.arange(7)}, "y_train is"),
        ({"y_test": np.zeros(8, int)}, "batch 1 has no test rows"),
        ({"task_train": np.arange(8)}, "task_train alone"),
        ({"classes_per_task": 0}, "classes_per_task is 0"),
        ({"classes_per_task": np.array([2, 2])}, "it is one number"),
        ({"x_train": np.zeros((8, 5, 8, 8), np.uint8)}, r"x_train is uint8 \(8, 5, 8, 8\)"),
        ({"x_train": np.zeros((8, 3, 0, 8), np.uint8)}, "x_train is uint8"),
        ({"y_train": np.array(["a"] * 8, dtype=object)}, "cannot be read"),
        ({"y_train": None}, "has no y_train"),
        ({"y_train": np.array([np.nan, *range(7)])}, "y_train is not a number in 1 rows"),
        ({"y_train": np.array(["2026-01-01"] * 8, "M8[D]")}, "cannot be compared"),
    ],
)
def test_a_file_that_is_no_stream_is_refused(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    arrays = {name: array for name, array in (GOOD | change).items() if array is not None}
    np.savez(tmp_path / "s.npz", **arrays)
    with pytest.raises(StreamFileError, match=told):
        load_stream(str(tmp_path / "s.npz"))


def one_array() -> bytes:
    np.save(buffer := BytesIO(), np.zeros(3))
    return buffer.getvalue()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"words", one_array()])
def test_a_file_that_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "s.npz").write_bytes(content)
    with pytest.raises(StreamFileError, match=r"s.npz cannot be read .it is no .npz archive"):
        load_stream(str(tmp_path / "s.npz"))


def test_batches_named_by_texts_of_numbers_come_as_they_count(tmp_path: Path) -> None:
    names = np.array([str(number) for number in range(12)])
    x = np.zeros((12, 3, 8, 8), dtype=np.uint8)
    parts = {f"{kind}_{part}": names for kind in ("y", "task") for part in ("train", "test")}
    np.savez(tmp_path / "s.npz", x_train=x, x_test=x, **parts)
    assert [batch.test_labels for batch in load_stream(str(tmp_path / "s.npz"))] == [[name] for name in names]


def test_a_backbone_that_is_not_there_is_named(tmp_path: Path, stream: Path) -> None:
    with pytest.raises(SystemExit, match=r"none' is no Hugging Face folder: it has no config.json"):
        main(["--data", str(stream), "--backbone", str(tmp_path / "none")])


def test_the_command_ends_in_a_message(tmp_path: Path, folders: dict[str, Path]) -> None:
    arguments = ["--data", str(tmp_path / "none.npz"), "--backbone", str(folders["vit"])]
    with pytest.raises(SystemExit, match=r"none.npz cannot be read"):
        main(arguments)


def test_a_backbone_for_texts_is_refused(stream: Path, folders: dict[str, Path]) -> None:
    with pytest.raises(UnsupportedBackboneError, match="encodes text; a stream file holds images"):
        run_method(str(stream), str(folders["bert"]), "default", 1)


@pytest.mark.parametrize("method", METHODS)
def test_a_backbone_of_two_blocks_is_enough(tmp_path: Path, method: str) -> None:
    sizes = SIZES | {"num_hidden_layers": 2}
    np.savez(tmp_path / "s.npz", **GOOD)
    config = ViTConfig(image_size=8, patch_size=4, intermediate_size=64, **sizes)
    ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path)
    assert len(run_method(str(tmp_path / "s.npz"), str(tmp_path), method, 1)["matrix"]) == 2


@pytest.mark.parametrize("method", METHODS)
def test_batches_too_thin_to_measure_a_shift_are_learned_all_the_same(
    tmp_path: Path, folders: dict[str, Path], method: str
) -> None:
    """A row of each of four classes, then six rows of one, then three of another."""
    y = np.array([0, 1, 2, 3, *[4] * 6, *[5] * 3])
    x = np.random.default_rng(0).integers(0, 255, (len(y), 3, 16, 16), dtype=np.uint8)
    rows = {"x": x, "y": y, "task": np.repeat([0, 1, 2], [4, 6, 3])}
    np.savez(tmp_path / "s.npz", **{f"{name}_{part}": rows[name] for name in rows for part in ("train", "test")})
    result = run_method(str(tmp_path / "s.npz"), str(folders["vit"]), method, 1)
    assert len(result["matrix"]) == len(result["decisions"]) == 3
    if method == "default":
        assert [each["decision"] for each in result["decisions"]] == ["hold", "expand", "hold"]


@pytest.mark.parametrize("form", [(8, 8, 8), (8, 1, 8, 8), (8, 8, 8, 3), (8, 4, 8, 8)])
def test_images_of_any_layout_have_three_channels_first(tmp_path: Path, form: tuple[int, ...]) -> None:
    np.savez(tmp_path / "s.npz", **(GOOD | {f"x_{part}": np.zeros(form, np.uint8) for part in ("train", "test")}))
    assert {batch.train_images.shape for batch in load_stream(str(tmp_path / "s.npz"))} == {(4, 3, 8, 8)}


def test_the_shift_benchmark_measures_what_a_batch_allows(
    stream: Path, tmp_path: Path, folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    backbone = ["--backbone", str(folders["vit"]), "--trials", "10", "--json"]
    shift.main(["--data", str(stream), *backbone])
    result = json.loads(capsys.readouterr().out)
    assert (result["rows"], result["power"]["grey_inverted"].keys()) == (40, {"20", "40"})
    np.savez(tmp_path / "s.npz", **GOOD)
    with pytest.raises(SystemExit, match="4 training rows; the test is measured on 40 or more"):
        shift.main(["--data", str(tmp_path / "s.npz"), *backbone])


def test_one_of_two_rows_is_held_out() -> None:
    train, held_out = split_rows(["a", "a", "b"], seed=1)
    assert (len(train), len(held_out)) == (2, 1)
    assert held_out != [2]


def test_held_out_rows_are_a_share_of_every_class() -> None:
    train, held_out = split_rows(["a"] * 10 + ["b"] * 20, seed=1)
    assert sorted(train + held_out) == list(range(30))
    assert sum(i < 10 for i in held_out) == 2
    assert len(held_out) == 6
