"""A stream file of the continual benchmark, and the meters of one run."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from tasks.learning.backbones import Backbone


@dataclass(frozen=True)
class Batch:
    """One delivery: images uint8 (N, 3, H, W) and class names that sort like the class numbers."""

    train_images: np.ndarray
    train_labels: list[str]
    test_images: np.ndarray
    test_labels: list[str]


def load_stream(path: str) -> list[Batch]:
    """Batches by `task_train` and `task_test` where the file has them, by `classes_per_task` (default 4) otherwise."""
    with np.load(path) as file:
        data = {name: file[name] for name in file.files}
    per_task = int(data.get("classes_per_task", 4))
    of_row = {part: data.get(f"task_{part}", data[f"y_{part}"] // per_task) for part in ("train", "test")}
    batches = []
    for number in np.unique(of_row["train"]):
        rows = {part: of_row[part] == number for part in of_row}
        names = {part: [f"{label:05d}" for label in data[f"y_{part}"][rows[part]]] for part in rows}
        images = {part: data[f"x_{part}"][rows[part]] for part in rows}
        batches.append(Batch(images["train"], names["train"], images["test"], names["test"]))
    return batches


def split_rows(labels: Sequence[str], seed: int, share: float = 0.2) -> tuple[list[int], list[int]]:
    """Training and held-out positions, the same share of every class held out."""
    generator = torch.Generator().manual_seed(seed)
    held_out: set[int] = set()
    for name in sorted(set(labels)):
        members = [i for i, label in enumerate(labels) if label == name]
        order = torch.randperm(len(members), generator=generator).tolist()
        held_out |= {members[i] for i in order[: int(len(members) * share)]}
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
