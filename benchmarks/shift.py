"""False alarms and power of the shift test on images: python -m benchmarks.shift --data FILE.npz --backbone FOLDER.

One JSON line. Null: two random samples of one batch's rows, with other shares of its classes on either side. Power: one
of the two seen through a planted look. Both as the pipeline decides: p <= alpha of the relabelings within classes.
Beside it SEMA's own statistic for the look, the mean z of the reconstruction error: what is not above 0 it misses.
"""

import argparse

import numpy as np
import torch
from scipy.stats import binomtest
from torch import Tensor

from benchmarks.continual_default import as_sample
from benchmarks.continual_stream import Batch, load_stream
from benchmarks.looks import darker, grey_inverted, low_contrast, saturated
from benchmarks.running import tell
from registry.errors import PipelineError, StreamFileError
from tasks.learning.adapters import default_layers
from tasks.learning.backbones import Backbone, load_backbone
from tasks.learning.descriptors import fit_descriptor, z_scores
from tasks.learning.features import signatures
from tasks.learning.shift import Sample, compare_samples

PERMUTATIONS = 199
SIZES = (20, 40, 80)
PLANTED = (grey_inverted, low_contrast, saturated, darker)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="stream file as of benchmarks.continual")
    parser.add_argument("--backbone", required=True, help="Hugging Face folder of a ViT or DINOv2")
    parser.add_argument("--alpha", type=float, default=0.01)
    parser.add_argument("--trials", type=int, default=400, help="of the null, 10 at least; a tenth for each power")
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of a table")
    options = parser.parse_args(arguments)
    if options.trials < 10:
        parser.error(f"--trials is {options.trials}; a share of fewer than 10 says nothing")
    try:
        batch = load_stream(options.data)[0]
        sizes = sizes_of(len(batch.train_labels))
        result = measure(load_backbone(options.backbone), batch, options.alpha, options.trials, sizes)
    except PipelineError as error:
        raise SystemExit(str(error)) from None
    tell(result, options.json)


def sizes_of(rows: int) -> list[int]:
    """Rows of the tested sample: 20, 40 and 80, as far as a batch has twice as many. Raises StreamFileError."""
    sizes = [size for size in SIZES if 2 * size <= rows]
    if not sizes:
        raise StreamFileError(
            f"the first batch has {rows} training rows; the test is measured on {2 * SIZES[0]} or more"
        )
    return sizes


def measure(backbone: Backbone, batch: Batch, alpha: float, trials: int, sizes: list[int]) -> dict[str, object]:
    """Share of alarms without shift, its 99 % binomial interval around alpha, and the power by look and rows."""
    clean_LND = _signatures(backbone, batch.train_images)
    clean_ND = as_sample(clean_LND)
    descriptor = fit_descriptor(clean_LND[:, ::2], clean_LND[:, 1::4])
    alarms = sum(_p_value(clean_ND, clean_ND, batch.train_labels, sizes[-1], trial) <= alpha for trial in range(trials))
    power: dict[str, dict[str, float]] = {}
    z: dict[str, float] = {"none": round(float(z_scores(descriptor, clean_LND[:, 3::4]).mean()), 2)}
    for look in PLANTED:
        changed = np.clip(look(batch.train_images.astype(np.float64)), 0, 255).astype(np.uint8)
        looked_LND = _signatures(backbone, changed)
        looked_ND = as_sample(looked_LND)
        z[look.__name__] = round(float(z_scores(descriptor, looked_LND[:, 3::4]).mean()), 2)
        power[look.__name__] = {
            str(rows): float(
                np.mean(
                    [
                        _p_value(looked_ND, clean_ND, batch.train_labels, rows, trial) <= alpha
                        for trial in range(trials // 10)
                    ]
                )
            )
            for rows in sizes
        }
    return {
        "alpha": alpha,
        "trials": trials,
        "rows": sizes[-1],
        "false_alarms": alarms / trials,
        "alpha_is_honoured": bool(binomtest(alarms, trials, alpha, alternative="greater").pvalue > 0.005),
        "power": power,
        "mean_z": z,
    }


def _signatures(backbone: Backbone, images: np.ndarray) -> Tensor:
    cut = backbone.num_blocks - default_layers(backbone.num_blocks)
    return signatures(backbone, backbone.encode(list(images), cut), cut)


def _p_value(batch_ND: Tensor, reference_ND: Tensor, labels: list[str], rows: int, trial: int) -> float:
    """Disjoint rows of one batch on either side; the second side has twice as many of every other class."""
    generator = torch.Generator().manual_seed(trial)
    order = torch.randperm(len(labels), generator=generator).tolist()
    even = set(sorted(set(labels))[::2])
    mine, rest = order[:rows], order[rows:]
    theirs = [i for n, i in enumerate(rest) if labels[i] in even or n % 2][:160]
    batch, reference = (
        Sample(rows_ND[kept], [labels[i] for i in kept]) for rows_ND, kept in ((batch_ND, mine), (reference_ND, theirs))
    )
    return compare_samples(batch, reference, PERMUTATIONS, trial).p_value


if __name__ == "__main__":
    main()
