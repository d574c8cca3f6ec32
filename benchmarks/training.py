"""A training epoch on cached hidden states against PEFT's: `python -m benchmarks.training [--json]`.

Both train the same LoRA adapters (query and value of the last layers, AdamW, fp32) on the same minibatches.
PEFT runs the whole model each step; with the cache, states entering the first adapted block are read from disk. The
gradients of every step have to be equal to the bit before anything is timed, and a model that is 0.1 % off must differ.
"""

# N records, B rows, T tokens, D width

import argparse
import copy
import json
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kernels.bench import WrongResultError, time_interleaved
from kernels.bench_models import QV, add_adapters, new_m6
from tasks.learning.stored_states import BYTES_PER_VALUE, pack, unpack

RECORDS, ROWS, TOKENS, CLASSES = 64, 16, 64, 8
SHAPES = ((6, 2), (6, 1), (12, 2))
EPOCHS = (1, 2, 10)


class Setting:
    """One model with adapters in its last layers, the records, and their states on disk."""

    def __init__(self, layers: int, last: int, folder: Path) -> None:
        self.cut = layers - last
        self.model = add_adapters(new_m6(layers), 1, QV, range(self.cut, layers)).train()
        self.head = nn.Linear(384, CLASSES)
        self.tokens_NT = torch.randint(1000, 2000, (RECORDS, TOKENS))
        self.target_N = torch.randint(0, CLASSES, (RECORDS,))
        self.folder = folder
        self.optimizer = torch.optim.AdamW(self.trained(), lr=1e-4)

    def trained(self) -> list[nn.Parameter]:
        return [p for p in (*self.model.parameters(), *self.head.parameters()) if p.requires_grad]

    @property
    def encoder(self) -> Any:
        return self.model.base_model.model

    def fill(self, dtype: str = "float32") -> None:
        """Run the frozen prefix once and keep each record's states, as the pipeline does."""
        with torch.inference_mode():
            for rows in self.minibatches():
                hidden_BTD = self.encoder.embeddings(input_ids=self.tokens_NT[rows])
                for layer in self.encoder.encoder.layer[: self.cut]:
                    hidden_BTD = layer(hidden_BTD, attention_mask=None)
                for number, state_TD in zip(rows, hidden_BTD, strict=True):
                    (self.folder / f"{number}.{dtype}").write_bytes(pack(state_TD, dtype))

    def minibatches(self) -> Iterator[list[int]]:
        return (list(range(first, first + ROWS)) for first in range(0, RECORDS, ROWS))

    def whole(self, rows: list[int]) -> Tensor:
        states_BTD: Tensor = self.model(input_ids=self.tokens_NT[rows]).last_hidden_state
        return states_BTD

    def cached(self, dtype: str, rows: list[int]) -> Tensor:
        read = [unpack((self.folder / f"{n}.{dtype}").read_bytes(), dtype, 384) for n in rows]
        hidden_BTD = torch.stack(read)
        for layer in self.encoder.encoder.layer[self.cut :]:
            hidden_BTD = layer(hidden_BTD, attention_mask=None)
        return hidden_BTD

    def gradients(self, run: Callable[[list[int]], Tensor], rows: list[int]) -> list[Tensor]:
        self.optimizer.zero_grad()
        functional.cross_entropy(self.head(run(rows).mean(1)), self.target_N[rows]).backward()
        return [p.grad.clone() for p in self.trained() if p.grad is not None]

    def epoch(self, run: Callable[[list[int]], Tensor]) -> None:
        for rows in self.minibatches():
            self.gradients(run, rows)
            self.optimizer.step()


def measure(layers: int, last: int, repeats: int) -> dict[str, Any]:
    """Check the gradients of every minibatch, then time one epoch each way, interleaved."""
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(layers, last, Path(folder))
        for dtype in BYTES_PER_VALUE:
            setting.fill(dtype)
        errors = {dtype: _error(setting, dtype) for dtype in BYTES_PER_VALUE}
        if errors["float32"] != 0:
            raise WrongResultError(f"{layers} layers: cached gradients are off by {errors['float32']:.2e}")
        if _perturbed(setting) == 0:
            raise WrongResultError("the check does not see weights that are 0.1 % off")
        runs = (partial(setting.epoch, setting.whole), partial(setting.epoch, partial(setting.cached, "float32")))
        whole_ms, cached_ms, fill_ms = time_interleaved((*runs, setting.fill), torch.device("cpu"), repeats)
    run_of = {f"{e} epochs": round(e * whole_ms / (fill_ms + e * cached_ms), 3) for e in EPOCHS}
    return {
        "shape": f"M6 {layers} layers, last {last}, {ROWS} x {TOKENS} tokens", "ratio": round(whole_ms / cached_ms, 3),
        "max_error": errors["float32"], "peft_ms": round(whole_ms, 1), "cached_ms": round(cached_ms, 1),
        "fill_ms": round(fill_ms, 1), "ratio_with_filling": run_of,
        "gradient_error": {dtype: float(f"{error:.3g}") for dtype, error in errors.items()},
        "bytes_per_record": {dtype: len(pack(torch.zeros(TOKENS, 384), dtype)) for dtype in BYTES_PER_VALUE},
    }  # fmt: skip


def _error(setting: Setting, dtype: str) -> float:
    """Largest difference of a gradient over the largest gradient, over all minibatches."""
    worst = 0.0
    for rows in setting.minibatches():
        expected = setting.gradients(setting.whole, rows)
        found = setting.gradients(partial(setting.cached, dtype), rows)
        scale = max(float(each.abs().max()) for each in expected)
        worst = max(worst, *(float((a - b).abs().max()) / scale for a, b in zip(found, expected, strict=True)))
    return worst


def _perturbed(setting: Setting) -> float:
    kept = copy.deepcopy(setting.encoder.encoder.layer[0].state_dict())
    with torch.no_grad():
        setting.encoder.encoder.layer[0].intermediate.dense.weight.mul_(1.001)
    error = _error(setting, "float32")
    setting.encoder.encoder.layer[0].load_state_dict(kept)
    return error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of a table")
    parser.add_argument("--repeats", type=int, default=3, help="samples of each side, of which the best counts")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = [measure(layers, last, arguments.repeats) for layers, last in SHAPES]
    head = {key: rows[0][key] for key in ("shape", "ratio", "max_error")}
    summary = {"op": "training_epoch", "baseline": "PEFT LoRA, the whole model each step", **head}
    if arguments.json:
        print(json.dumps({**summary, "device": "cpu, 1 thread", "shapes": rows}))
        return
    for row in rows:
        print(
            f"{row['shape']}: {row['peft_ms']} -> {row['cached_ms']} ms, x{row['ratio']}, filling {row['fill_ms']} ms"
        )


if __name__ == "__main__":
    main()
