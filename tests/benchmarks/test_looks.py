from pathlib import Path

import numpy as np
import pytest

from benchmarks import looks
from benchmarks.continual_stream import load_stream

PER_CLASS = {"train": 6, "test": 4}


@pytest.fixture
def stream(tmp_path: Path) -> Path:
    """Four classes in two batches, no two images alike."""
    rng, columns = np.random.default_rng(0), {"classes_per_task": np.array(2)}
    for part, count in PER_CLASS.items():
        columns[f"y_{part}"] = np.arange(4).repeat(count)
        columns[f"x_{part}"] = rng.integers(0, 256, (4 * count, 3, 8, 6), dtype=np.uint8)
    np.savez(tmp_path / "stream.npz", **columns)
    return tmp_path / "stream.npz"


def write(stream: Path, named: str, *options: str) -> Path:
    out = stream.with_name("looks.npz")
    looks.main(["--data", str(stream), "--looks", named, "--out", str(out), *options])
    return out


def test_every_class_is_dealt_to_every_batch_and_no_image_twice(stream: Path) -> None:
    dealt, before = load_stream(str(write(stream, "clean,clean"))), load_stream(str(stream))
    for batch in dealt:
        assert sorted(batch.train_labels) == sorted(f"{c:05d}" for c in range(4) for _ in range(3))
        assert sorted(batch.test_labels) == sorted(f"{c:05d}" for c in range(4) for _ in range(2))

    def named(batches: list[looks.Batch]) -> list[tuple[str, bytes]]:
        return sorted((y, x.tobytes()) for b in batches for y, x in zip(b.train_labels, b.train_images, strict=True))

    assert named(dealt) == named(before)


def test_batches_that_are_kept_have_their_looks_alone(stream: Path) -> None:
    before, after = load_stream(str(stream)), load_stream(str(write(stream, "clean,negative", "--keep")))
    assert [batch.test_labels for batch in after] == [batch.test_labels for batch in before]
    assert np.array_equal(after[0].train_images, before[0].train_images)
    assert np.array_equal(after[1].train_images, 255 - before[1].train_images)


def test_a_stream_with_looks_is_the_same_on_every_run(stream: Path) -> None:
    first = write(stream, "noisy,blurred").read_bytes()
    assert write(stream, "noisy,blurred").read_bytes() == first
    assert write(stream, "noisy,blurred", "--seed", "2").read_bytes() != first


def test_every_look_but_one_changes_images_and_keeps_their_shape(stream: Path) -> None:
    x = load_stream(str(stream))[0].train_images.astype(np.float64)
    changed = {name: look(x) for name, look in looks.LOOKS.items()}
    assert {y.shape for y in changed.values()} == {x.shape}
    assert [name for name, y in changed.items() if np.array_equal(x, y)] == ["clean"]


@pytest.mark.parametrize(
    ("named", "options", "says"),
    [
        ("clean,sepia", [], "there is no look 'sepia'; there are clean, "),
        ("clean", ["--keep"], "2 batches and 1 looks; name one look for each batch"),
        ("clean,clean,clean,clean,clean", [], "class 00000 has fewer than 5 test images; name fewer looks"),
    ],
)
def test_what_cannot_be_written_is_refused(stream: Path, named: str, options: list[str], says: str) -> None:
    with pytest.raises(SystemExit, match=says):
        write(stream, named, *options)
