"""A stream file of the continual benchmark, and the meters of one run."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, is_zipfile

import numpy as np
import torch
from torch import Tensor

from registry.errors import StreamFileError
from tasks.learning.backbones import Backbone

PARTS = ("train", "test")
CHANNELS = (1, 3, 4)
LEAST_HELD = 2
"""Held-out rows that a shift can be measured on."""
COLUMNS = ("classes_per_task", *(f"{name}_{part}" for name in ("x", "y", "task") for part in PARTS))


@dataclass(frozen=True)
class Batch:
    """One delivery: images uint8 (N, 3, H, W) and class names; numbers sort as they count."""

    train_images: np.ndarray
    train_labels: list[str]
    test_images: np.ndarray
    test_labels: list[str]


def load_stream(path: str) -> list[Batch]:
    """Batches by `task_train` and `task_test` where the file has them, by `classes_per_task` (default 4) otherwise.

    Raises StreamFileError for a file that is no such stream.
    """
    data = _read(path)
    of_row = _tasks(data, path)
    batches = []
    for number in _in_order(np.unique(np.concatenate([*of_row.values()]))):
        train, test = (_rows(data, of_row[part] == number, part, f"{path}: batch {number}") for part in PARTS)
        batches.append(Batch(*train, *test))
    return batches


def _in_order(batches: np.ndarray) -> list[Any]:
    """Sorted as they count, also where numbers are written as texts: "10" comes after "2"."""
    if batches.dtype.kind == "U" and np.char.isdecimal(batches).all():
        return sorted(batches, key=int)
    return list(batches)


def _read(path: str) -> dict[str, np.ndarray]:
    try:
        if Path(path).is_file() and not is_zipfile(path):  # NumPy would take it for a pickle
            raise StreamFileError(f"{path} cannot be read (it is no .npz archive); write it with numpy.savez")
        with Path(path).open("rb") as opened, np.load(opened) as file:
            data = {name: file[name] for name in COLUMNS if name in file.files}
    except (OSError, EOFError, BadZipFile, ValueError, TypeError) as error:  # no archive, a pickle, one array
        raise StreamFileError(f"{path} cannot be read ({error}); write it with numpy.savez") from error
    for part in PARTS:
        if missing := {f"x_{part}", f"y_{part}"} - data.keys():
            raise StreamFileError(f"{path} has no {', '.join(sorted(missing))}; images are x, their classes y")
        images, columns = data[f"x_{part}"], [f"y_{part}", *({f"task_{part}"} & data.keys())]
        data[f"x_{part}"] = _channels_first(images, f"{path}: x_{part}")
        for name in columns:
            if data[name].shape != images.shape[:1]:
                raise StreamFileError(f"{path}: {name} is {data[name].shape} for {len(images)} images of x_{part}")
            if unnamed := int((data[name] != data[name]).sum()):
                raise StreamFileError(f"{path}: {name} is not a number in {unnamed} rows; name them, or leave them out")
    return data | _of_one_type(data, path)


def _of_one_type(data: Mapping[str, np.ndarray], path: str) -> dict[str, np.ndarray]:
    """Classes and batches as both parts can hold them: 1 of the one part is "1", or 1.0, of the other."""
    named = [name for name in ("y", "task") if all(f"{name}_{part}" in data for part in PARTS)]
    try:
        kinds = {name: np.result_type(*(data[f"{name}_{part}"] for part in PARTS)) for name in named}
    except TypeError as error:
        raise StreamFileError(f"{path}: the names of its two parts cannot be compared ({error})") from error
    return {f"{name}_{part}": data[f"{name}_{part}"].astype(kinds[name]) for name in named for part in PARTS}


def _channels_first(images: np.ndarray, what: str) -> np.ndarray:
    """uint8 (N, 3, H, W) from that, (N, H, W, 3), a fourth channel for opacity, or gray with one channel or none."""
    known = images.dtype == np.uint8 and images.ndim in (3, 4) and images.size > 0
    if known and images.ndim == 3:
        images = images[:, None]
    elif known and images.shape[1] not in CHANNELS and images.shape[3] in CHANNELS:
        images = images.transpose(0, 3, 1, 2)
    if not known or images.shape[1] not in CHANNELS:
        raise StreamFileError(f"{what} is {images.dtype} {images.shape}; store uint8 images (N, 3, H, W), 0 to 255")
    return images.repeat(3, 1) if images.shape[1] == 1 else images[:, :3]


def _tasks(data: Mapping[str, np.ndarray], path: str) -> dict[str, np.ndarray]:
    """The batch of every row: as the file says, or so many of the classes, in their order, a batch."""
    told = [part for part in PARTS if f"task_{part}" in data]
    if told:
        if len(told) < len(PARTS):
            raise StreamFileError(f"{path} has task_{told[0]} alone; name the batches of both parts, or of neither")
        return {part: data[f"task_{part}"] for part in PARTS}
    told_per_task = data.get("classes_per_task", np.array(4))
    if told_per_task.size != 1 or told_per_task.dtype.kind not in "iu" or int(told_per_task.item()) < 1:
        raise StreamFileError(f"{path}: classes_per_task is {told_per_task}; it is one number, of 1 or more")
    per_task = int(told_per_task.item())
    classes = np.unique(np.concatenate([data[f"y_{part}"] for part in PARTS]))
    return {part: np.searchsorted(classes, data[f"y_{part}"]) // per_task for part in PARTS}


def _rows(data: Mapping[str, np.ndarray], chosen_N: np.ndarray, part: str, where: str) -> tuple[np.ndarray, list[str]]:
    """The chosen images of a part and their class names."""
    if not chosen_N.any():
        raise StreamFileError(f"{where} has no {part} rows; every batch needs both parts")
    labels = data[f"y_{part}"][chosen_N]
    names = [f"{label:05d}" if isinstance(label, np.integer) else str(label) for label in labels]
    return data[f"x_{part}"][chosen_N], names


def split_rows(labels: Sequence[str], seed: int, share: float = 0.2) -> tuple[list[int], list[int]]:
    """Training and held-out positions, the same share of every class held out, and at least one row of two; of four
    rows of one class two, for fewer measure no shift."""
    generator = torch.Generator().manual_seed(seed)
    held_out: set[int] = set()
    for name in sorted(set(labels)):
        members = [i for i, label in enumerate(labels) if label == name]
        order = torch.randperm(len(members), generator=generator).tolist()
        count = max(int(len(members) * share), int(len(members) > 1))
        if len(members) == len(labels) >= LEAST_HELD * 2:
            count = max(count, LEAST_HELD)
        held_out |= {members[i] for i in order[:count]}
    return [i for i in range(len(labels)) if i not in held_out], sorted(held_out)


@dataclass
class Meter:
    """Seconds and block evaluations of training and of inference, kept apart."""

    backbone: Backbone
    seconds: dict[str, float] = field(default_factory=lambda: {"train": 0.0, "inference": 0.0})
    forwards: dict[str, int] = field(default_factory=lambda: {"train": 0, "inference": 0})
    backwards: int = 0

    @contextmanager
    def measure(self, what: str) -> Iterator[None]:
        work, began = self.backbone.work, time.perf_counter()
        forwards, backwards = work.forwards, work.backwards
        yield
        self.seconds[what] += time.perf_counter() - began
        self.forwards[what] += work.forwards - forwards
        self.backwards += work.backwards - backwards


@dataclass
class Run:
    """What every method of the benchmark fills in while it goes through the stream."""

    backbone: Backbone
    batches: list[Batch]
    seed: int
    meter: Meter
    cut: int
    matrix: list[list[float]] = field(default_factory=list)
    decisions: list[dict[str, object]] = field(default_factory=list)
    adapters_by_layer: dict[str, int] = field(default_factory=dict)
    trainable_parameters: int = 0
    tests: list[list[Tensor]] = field(default_factory=list)

    def train_states(self, number: int) -> list[Tensor]:
        """States of a batch's training rows at the cut: the prefix runs once per image."""
        with self.meter.measure("train"):
            return self.backbone.encode(list(self.batches[number].train_images), self.cut)

    def test_states(self, number: int) -> list[list[Tensor]]:
        """States of the test rows of batches 0 to `number`, each encoded once."""
        with self.meter.measure("inference"):
            while len(self.tests) <= number:
                self.tests.append(self.backbone.encode(list(self.batches[len(self.tests)].test_images), self.cut))
        return self.tests

    def nothing_decided(self) -> None:
        """A batch for which the method measures no shift."""
        self.decisions.append({"decision": None, "p_value": None, "z_scores": None, "adapter": None})

    def record(self, predicted: Sequence[Sequence[str]]) -> None:
        """Add a row to the accuracy matrix from the predicted labels of the batches so far."""
        rows = zip(predicted, self.batches, strict=False)
        pairs = [(labels, batch.test_labels) for labels, batch in rows]
        self.matrix.append([sum(a == b for a, b in zip(p, y, strict=True)) / len(y) for p, y in pairs])
