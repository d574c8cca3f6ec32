"""Continual-learning methods on a stream file: python -m benchmarks.continual --data FILE.npz --backbone FOLDER.

One JSON line per run. `block_forwards` and `block_backwards` count rows times blocks of training, per training image;
test images are counted apart. Nothing is chosen on test rows.
"""

import argparse

import torch

from benchmarks.continual_default import run_default
from benchmarks.continual_published import run_mos, run_sema
from benchmarks.continual_stream import Meter, Run, load_stream
from benchmarks.continual_tuned import run_joint, run_sequential
from benchmarks.running import tell
from registry.errors import PipelineError, UnsupportedBackboneError
from tasks.learning.adapters import AdapterSpec, default_layers
from tasks.learning.backbones import load_backbone
from tasks.learning.metrics import continual_metrics
from tasks.learning.training import Recipe

SEEDS = range(-(1 << 63), 1 << 63)  # what a generator takes
METHODS = ("default", "sema", "mos", "probe", "sequential", "joint")
DEFAULT = Recipe(epochs=1, minibatch=4)  # chosen on training rows (docs/decisions/0100)
JOINT = Recipe(epochs=6, learning_rate=2e-3, minibatch=32)


def main(arguments: list[str] | None = None) -> None:
    """Run one method on one stream with one seed and print its line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="stream file: x_train, y_train, x_test, y_test, ... (npz)")
    parser.add_argument("--backbone", required=True, help="Hugging Face folder of a ViT or DINOv2")
    parser.add_argument("--method", choices=METHODS, default="default")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of a table")
    options = parser.parse_args(arguments)
    if options.threads < 1 or options.seed not in SEEDS:
        parser.error(f"--threads is 1 or more, --seed from {SEEDS.start} to {SEEDS.stop - 1}")
    torch.set_num_threads(options.threads)
    try:
        result = run_method(options.data, options.backbone, options.method, options.seed)
    except PipelineError as error:
        raise SystemExit(str(error)) from None
    tell(result, options.json)


def run_method(data: str, folder: str, method: str, seed: int) -> dict[str, object]:
    """The figures of one run; accuracies are fractions. Raises StreamFileError, UnsupportedBackboneError."""
    backbone = load_backbone(folder)
    if backbone.modality != "image":
        raise UnsupportedBackboneError(
            f"{folder} encodes {backbone.modality}; a stream file holds images: name a ViT or DINOv2"
        )
    spec = AdapterSpec(rank=16, last_layers=default_layers(backbone.num_blocks))
    cut = 0 if method == "sema" else backbone.num_blocks - spec.last_layers
    run = Run(backbone, load_stream(data), seed, Meter(backbone), cut)
    if method in ("default", "probe"):
        run_default(run, spec, DEFAULT, use_adapters=method == "default")
    elif method == "sequential":
        run_sequential(run, spec, JOINT)
    elif method == "joint":
        run_joint(run, spec, JOINT)
    else:
        {"sema": run_sema, "mos": run_mos}[method](run)
    return {"method": method, "seed": seed, **_figures(run)}


def _figures(run: Run) -> dict[str, object]:
    sizes = [len(batch.test_labels) for batch in run.batches]
    metrics = continual_metrics(run.matrix, sizes)
    images = sum(len(batch.train_labels) for batch in run.batches)
    return {
        "matrix": run.matrix,
        "last": metrics.last,
        "average": metrics.average,
        "forgetting": metrics.forgetting,
        "adapters_by_layer": run.adapters_by_layer,
        "trainable_parameters": run.trainable_parameters,
        "block_forwards": run.meter.forwards["train"] / images,
        "block_backwards": run.meter.backwards / images,
        "inference_block_forwards": run.meter.forwards["inference"] / sum(_visits(sizes)),
        "train_seconds": run.meter.seconds["train"],
        "inference_seconds": run.meter.seconds["inference"],
        "decisions": run.decisions,
    }


def _visits(sizes: list[int]) -> list[int]:
    """Test rows answered after each batch."""
    return [sum(sizes[: number + 1]) for number in range(len(sizes))]


if __name__ == "__main__":
    main()
