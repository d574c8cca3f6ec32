"""Which part of the exact head answers rare classes (docs/decisions/0106 and 0107).

`python -m benchmarks.imbalance --data FILE.npz --backbone FOLDER`: the frozen exact head on training rows of the file
alone, a fifth of each class for validation; half of the classes, drawn anew by each seed, keep one row of `ratio`.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from benchmarks.continual_stream import load_stream
from tasks.learning.adapters import default_layers
from tasks.learning.backbones import load_backbone
from tasks.learning.features import run_suffix
from tasks.learning.heads import ClassStatistics, class_statistics, head_scores, solve_head

PARTS = ("regression", "its scores by share^(1/4)", "posterior", "both (the head)")
RATIOS, NOISE, SEEDS = (1, 2, 4, 10, 20), (0, 0.1), 4
AT_ONCE = 200


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.imbalance", description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--backbone", required=True)
    options = parser.parse_args(argv)
    features_NF, labels = frozen_features(options.data, options.backbone)
    sys.stdout.write(f"{', '.join(PARTS)}: accuracy where rare classes stay rare | where all are as frequent\n")
    for ratio in RATIOS:
        for noise in NOISE:
            rare, alike = 100 * np.mean([measure(features_NF, labels, ratio, noise, s) for s in range(SEEDS)], axis=0)
            figures = " | ".join(" ".join(f"{value:5.1f}" for value in part) for part in (rare, alike))
            sys.stdout.write(f"1 of {ratio:2}, {noise:3.0%} wrong labels: {figures}\n")


def frozen_features(data: str, folder: str) -> tuple[Tensor, np.ndarray]:
    """(N, F) of every training row, and its class."""
    backbone = load_backbone(folder)
    cut = backbone.num_blocks - default_layers(backbone.num_blocks)
    batches = load_stream(data)
    images = np.concatenate([batch.train_images for batch in batches])
    parts = [images[i : i + AT_ONCE] for i in range(0, len(images), AT_ONCE)]
    found = [run_suffix(backbone, backbone.encode(list(part), cut), cut).features_NF for part in parts]
    return torch.cat(found), np.array([label for batch in batches for label in batch.train_labels])


def measure(features_NF: Tensor, labels: np.ndarray, ratio: int, noise: float, seed: int) -> tuple[list[float], ...]:
    """Two accuracies on validation rows for each part: rare classes weigh 1 / `ratio`, or as much as the others."""
    drawn = np.random.default_rng(seed)
    classes = np.unique(labels)
    rare = drawn.permutation(classes)[: len(classes) // 2]
    fit, valid = list[np.ndarray](), list[np.ndarray]()
    for name in classes:
        rows = drawn.permutation(np.flatnonzero(labels == name))
        held, rest = np.split(rows, [len(rows) // 5])
        valid.append(held)
        fit.append(rest[: max(4, len(rest) // ratio)] if name in rare else rest)
    fit_n, valid_n = np.concatenate(fit), np.concatenate(valid)
    told = np.where(drawn.random(len(fit_n)) < noise, labels[drawn.permutation(fit_n)], labels[fit_n])
    statistics = class_statistics(features_NF[fit_n], told.tolist())
    weights = np.where(np.isin(labels[valid_n], rare), 1 / ratio, 1.0)
    right = [answers == labels[valid_n] for answers in _answers(statistics, features_NF[valid_n])]
    return [float(np.average(each, weights=weights)) for each in right], [float(each.mean()) for each in right]


def _answers(statistics: ClassStatistics, features_NF: Tensor) -> list[np.ndarray]:
    head, counts_C = solve_head([statistics]), statistics.counts_C
    both_NC = head_scores(head, features_NF)
    regression_NC = head_scores(replace(head, discriminant_CE=None), features_NF)
    lifted_NC, posterior_NC = regression_NC * (counts_C.mean() / counts_C) ** 0.25, 2 * both_NC - regression_NC
    parts = (regression_NC, lifted_NC, posterior_NC, both_NC)
    return [np.array(head.labels)[scores_NC.argmax(1).numpy()] for scores_NC in parts]


if __name__ == "__main__":
    main()
