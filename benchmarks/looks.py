"""Put looks on a stream: python -m benchmarks.looks --data FILE.npz --looks noisy,negative,noisy --out NEW.npz.

Every class comes in every batch, on images that no other batch holds, the n-th batch in the n-th look: a batch should
expand on a look that is new, and reuse the adapter of one that is known. With --keep the batches stay as they are.
"""

import argparse
from collections.abc import Callable, Sequence

import numpy as np
from scipy.ndimage import uniform_filter

from benchmarks.continual_stream import PARTS, Batch, load_stream
from registry.errors import PipelineError, StreamFileError

Look = Callable[[np.ndarray], np.ndarray]


def clean(x: np.ndarray) -> np.ndarray:
    """Like every look: float (N, 3, H, W) in 0 to 255; what leaves that range is cut off."""
    return x


def grey_inverted(x: np.ndarray) -> np.ndarray:
    """Lowers SEMA's reconstruction error, which therefore misses it."""
    return np.repeat(255 - x.mean(1, keepdims=True), 3, 1)


def low_contrast(x: np.ndarray) -> np.ndarray:
    return (x - 128) * 0.5 + 128


def saturated(x: np.ndarray) -> np.ndarray:
    grey = x.mean(1, keepdims=True)
    return (x - grey) * 2 + grey


def darker(x: np.ndarray) -> np.ndarray:
    return x * 0.7


def negative(x: np.ndarray) -> np.ndarray:
    return 255 - x


def swapped(x: np.ndarray) -> np.ndarray:
    """Blue, red, green for red, green, blue."""
    return x[:, [2, 0, 1]]


def turned(x: np.ndarray) -> np.ndarray:
    """Upside down."""
    return x[:, :, ::-1, ::-1]


def blurred(x: np.ndarray) -> np.ndarray:
    """The mean of five by five pixels."""
    return uniform_filter(x, (1, 1, 5, 5))


def noisy(x: np.ndarray) -> np.ndarray:
    """Drawn from what it is added to: the same on every run, and another in every batch."""
    return x + np.random.default_rng(int(x.sum())).normal(0, 60, x.shape)


LOOKS: dict[str, Look] = {
    look.__name__: look
    for look in (clean, grey_inverted, low_contrast, saturated, darker, negative, swapped, turned, blurred, noisy)
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="stream file as of benchmarks.continual")
    parser.add_argument("--looks", required=True, help=f"one for each batch, with commas: {', '.join(LOOKS)}")
    parser.add_argument("--out", required=True, help="the stream file to write")
    parser.add_argument("--keep", action="store_true", help="keep the batches of the file instead of dealing anew")
    parser.add_argument("--seed", type=int, default=1, help="of the deal")
    options = parser.parse_args(arguments)
    try:
        columns = put_on(load_stream(options.data), options.looks.split(","), options.keep, options.seed)
        np.savez_compressed(options.out, **columns)  # type: ignore[arg-type]
    except (PipelineError, OSError) as error:
        raise SystemExit(str(error)) from None


def put_on(batches: Sequence[Batch], looks: Sequence[str], keep: bool, seed: int) -> dict[str, np.ndarray]:
    """The columns of a stream file. Raises StreamFileError for a look that there is not, or batches without one."""
    if unknown := [name for name in looks if name not in LOOKS]:
        raise StreamFileError(f"there is no look {unknown[0]!r}; there are {', '.join(LOOKS)}")
    if keep and len(looks) != len(batches):
        raise StreamFileError(f"{len(batches)} batches and {len(looks)} looks; name one look for each batch")
    batches = batches if keep else deal(batches, len(looks), seed)
    columns: dict[str, list[np.ndarray]] = {}
    for number, (name, batch) in enumerate(zip(looks, batches, strict=True)):
        for part in PARTS:
            images, labels = getattr(batch, f"{part}_images"), getattr(batch, f"{part}_labels")
            looked = LOOKS[name](images.astype(np.float64)).round().clip(0, 255).astype(np.uint8)
            for letter, column in (("x", looked), ("y", np.array(labels)), ("task", np.full(len(labels), number))):
                columns.setdefault(f"{letter}_{part}", []).append(column)
    return {"look": np.array(looks)} | {name: np.concatenate(parts) for name, parts in columns.items()}


def deal(batches: Sequence[Batch], count: int, seed: int) -> list[Batch]:
    """Every class in each of so many batches, by as many images more or less. Raises StreamFileError for a class that
    has fewer of a part."""
    rng, dealt = np.random.default_rng(seed), [list[object]() for _ in range(count)]
    for part in PARTS:
        images = np.concatenate([getattr(batch, f"{part}_images") for batch in batches])
        labels = np.array([label for batch in batches for label in getattr(batch, f"{part}_labels")])
        classes = [np.flatnonzero(labels == name) for name in np.unique(labels)]
        if few := [labels[rows[0]] for rows in classes if len(rows) < count]:
            raise StreamFileError(f"class {few[0]} has fewer than {count} {part} images; name fewer looks")
        shares = [np.array_split(rng.permutation(rows), count) for rows in classes]
        for number, values in enumerate(dealt):
            rows = np.concatenate([share[number] for share in shares])
            values += [images[rows], labels[rows].tolist()]
    return [Batch(*values) for values in dealt]  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
