"""Answering with many adapters against the bare backbone and PEFT: `python -m benchmarks.inference [--json]`.

One process, interleaved, CPU time of one thread, checked before it is timed. Per number of adapters, raw texts that
each look like one adapter's shard, as many as batch scoring takes at once, go through what serves them: tokens, frozen
pass, retrieval among all adapters, one adapted pass, heads. Beside it, on the same token ids in minibatches of up to 16
texts of about one length: the backbone alone, as transformers runs it; PEFT's LoRA of the same rank in the same layers
with `adapter_names`, and a copy of the backbone per adapter (merged). Both are told which adapter each record needs and
have no heads. `told` is ours in their place: the adapter is given, no retrieval. `vs_frozen_linear` is against the
backbone alone with our products (`kernels.frozen_linear`), and `floor` that backbone's share of the blocks that an
answer takes: no implementation that runs the frozen blocks for retrieval does better.

The last number named is measured once more at a stream's default depth, adapters in two thirds of the blocks: the last
of the other rows. Then its model is served (`benchmarks.served`): p50, p99 and errors of 50 clients at once.
"""

# N records, T tokens, K adapters

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import BertConfig, BertModel, BertTokenizerFast  # type: ignore[attr-defined]

from benchmarks import served
from kernels.bench import WrongResultError, time_interleaved
from kernels.frozen_linear import freeze_linears
from tasks.learning.adapters import AdapterSpec, AdapterWeights, default_layers, new_adapter
from tasks.learning.backbones import Backbone, load_backbone
from tasks.learning.composition import AdapterEntry, Composed, ServingModel, predict
from tasks.learning.descriptors import fit_descriptor, side_by_side
from tasks.learning.features import num_features, run_suffix
from tasks.learning.heads import RANDOM_FEATURES, VIEWS, ClassStatistics, Head, add_up, class_statistics
from tasks.prediction import CHUNK

Row = dict[str, Any]
SERVED = 40
"""Texts that the served model's clients ask in turn."""

LETTERS, LAYERS, WIDTH, RANK = "abcdefghijklmnopqrstuvwxyz", 6, 384, 16
DEFAULT_DEPTH = default_layers(LAYERS)
CLASSES, OWN, BARE_ROWS = 8, 12, 16
LINEAR = ("intermediate.dense", "output.dense")


@dataclass(frozen=True)
class Setting:
    """A backbone, what a caller may use of K adapters, and texts with the adapter that each looks like."""

    backbone: Backbone
    composed: Composed
    texts: list[str]
    slots: list[int]


def save_m6(folder: Path) -> None:
    """M6 with a tokenizer of letters, as any Hugging Face folder."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS]
    config = BertConfig(
        vocab_size=len(words), num_hidden_layers=LAYERS, hidden_size=WIDTH, num_attention_heads=12,
        intermediate_size=4 * WIDTH, max_position_embeddings=64,
    )  # fmt: skip
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)


def texts_of(shard: int, count: int, seed: int) -> list[str]:
    """Texts of one shard: three letters of its own mixed with all others."""
    draw = random.Random(f"{shard} {seed}")
    own = random.Random(shard).sample(LETTERS, 3)
    letters = (draw.choice(own) if draw.random() < 0.8 else draw.choice(LETTERS) for _ in iter(int, 1))
    return [" ".join(islice(letters, draw.randint(20, 48))) for _ in range(count)]


def new_entries(backbone: Backbone, num: int, last: int) -> list[AdapterEntry]:
    """Descriptors are fitted on shards; weights and statistics are random, since time does not depend on values."""
    cut = LAYERS - last
    states = backbone.encode([text for k in range(num) for text in texts_of(k, 2 * OWN, 0)], cut)
    signatures_LND = run_suffix(backbone, states, cut).signatures_LND.unflatten(1, (num, 2 * OWN))
    labels = [f"class-{n % CLASSES}" for n in range(2 * OWN)]

    def statistics() -> tuple[ClassStatistics]:
        return (class_statistics(torch.randn(2 * OWN, num_features(WIDTH, last)), labels),)

    return [
        AdapterEntry(f"a{k:03}", "all", random_adapter(backbone, k, last),
                     fit_descriptor(signatures_LND[:, k, :OWN], signatures_LND[:, k, OWN:]), statistics(), statistics())
        for k in range(num)
    ]  # fmt: skip


def new_setting(backbone: Backbone, entries: Sequence[AdapterEntry], last: int, records: int) -> Setting:
    """Heads are random and solved beforehand: solving is paid once per adapter and caller, not per answer."""
    num, cut = len(entries), LAYERS - last
    heads = [_head(num_features(WIDTH, last)) for _ in range(1 + 2 * num)]
    model = ServingModel(cut, AdapterSpec(rank=RANK, last_layers=last), {}, tuple(entries))
    composed = Composed(
        cut, heads[0].labels, heads[0], tuple(entries), model.bank,
        side_by_side([entry.descriptor for entry in entries]), add_up(entries[0].frozen),
        {entry.adapter_id: (heads[1 + k], heads[1 + num + k]) for k, entry in enumerate(entries)},
    )  # fmt: skip
    slots = [n % num for n in range(records)]
    return Setting(backbone, composed, [texts_of(k, 1, 1 + n)[0] for n, k in enumerate(slots)], slots)


def random_adapter(backbone: Backbone, seed: int, last: int) -> AdapterWeights:
    generator = torch.Generator().manual_seed(seed)
    blank = new_adapter(backbone, AdapterSpec(rank=RANK, last_layers=last), seed)
    return {name: torch.randn(tensor.shape, generator=generator) / 20 for name, tensor in blank.items()}


def _head(features: int) -> Head:
    labels = tuple(f"class-{c}" for c in range(CLASSES))
    return Head(labels, torch.randn(CLASSES, features + VIEWS * RANDOM_FEATURES) / 50, torch.zeros(CLASSES))


def answer(setting: Setting) -> Tensor:
    """What the served model computes for raw texts."""
    states = setting.backbone.encode(setting.texts, setting.composed.cut)
    return predict(setting.backbone, setting.composed, states).scores_NC


def told(setting: Setting) -> Tensor:
    """The adapter of each record is given: prefix and one mixed pass, without retrieval and heads."""
    cut = setting.composed.cut
    states = setting.backbone.encode(setting.texts, cut)
    starts = run_suffix(setting.backbone, states, cut, stop=cut + 1, keep_starts=True).starts
    pairs = [(n, f"a{k:03}") for n, k in enumerate(setting.slots)]
    return setting.composed.bank.features(setting.backbone, starts, cut, pairs)


def minibatches(setting: Setting) -> list[tuple[list[int], Tensor, Tensor]]:
    """(positions, token ids, mask): ours are padded to the same lengths, but in minibatches of a constant 8."""
    tokens = [setting.backbone._tokens(text) for text in setting.texts]
    cut = []
    for chosen, padded in setting.backbone.minibatches([len(t) for t in tokens], BARE_ROWS):
        ids_NT = torch.zeros(len(chosen), padded, dtype=torch.long)
        for row, n in enumerate(chosen):
            ids_NT[row, : len(tokens[n])] = torch.as_tensor(tokens[n])
        cut.append((chosen, ids_NT, (ids_NT != 0).long()))
    return cut


def bare(setting: Setting, model: Any) -> None:
    with torch.inference_mode():
        for _, ids_NT, mask_NT in minibatches(setting):
            model(input_ids=ids_NT, attention_mask=mask_NT)


def peft_mixed(setting: Setting, model: Any) -> None:
    with torch.inference_mode():
        for chosen, ids_NT, mask_NT in minibatches(setting):
            names = [f"a{setting.slots[n]}" for n in chosen]
            model(input_ids=ids_NT, attention_mask=mask_NT, adapter_names=names)


def merged_copies(setting: Setting, model: Any) -> None:
    """A forward per adapter and minibatch; one copy stands in for all, since their cost is the same."""
    with torch.inference_mode():
        for chosen, ids_NT, mask_NT in minibatches(setting):
            for slot in sorted({setting.slots[n] for n in chosen}):
                rows = [row for row, n in enumerate(chosen) if setting.slots[n] == slot]
                model(input_ids=ids_NT[rows], attention_mask=mask_NT[rows])


def check(setting: Setting) -> float:
    """Every record visits the adapter it looks like, and the mixed pass is each adapter's own. Returns the share that
    visits its own adapter. Raises WrongResultError."""
    states = setting.backbone.encode(setting.texts, setting.composed.cut)
    found = predict(setting.backbone, setting.composed, states)
    mixed_PF = told(setting)
    for n, k in list(enumerate(setting.slots))[::16]:
        weights = setting.composed.bank.read(f"a{k:03}")
        own_F = run_suffix(setting.backbone, [states[n]], setting.composed.cut, weights).features_NF[0]
        if not torch.equal(mixed_PF[n], own_F):
            raise WrongResultError(f"record {n}: the mixed pass differs from adapter {k} alone")
        off = {name: tensor * 1.001 for name, tensor in weights.items()}
        if torch.equal(run_suffix(setting.backbone, [states[n]], setting.composed.cut, off).features_NF[0], own_F):
            raise WrongResultError("the check does not see an adapter that is 0.1 % off")
    return sum(f"a{k:03}" in visits for k, visits in zip(setting.slots, found.visits, strict=True)) / len(setting.slots)


def peft_model(folder: Path, num: int, last: int) -> Any:
    config = LoraConfig(
        r=RANK, lora_alpha=RANK, target_modules=list(LINEAR), init_lora_weights=False,
        layers_to_transform=list(range(LAYERS - last, LAYERS)),
    )  # fmt: skip
    model = get_peft_model(BertModel.from_pretrained(folder, add_pooling_layer=False), config, adapter_name="a0")
    for k in range(1, num):
        model.add_adapter(f"a{k}", config)
    return model.eval()


def measure(
    backbone: Backbone, folder: Path, entries: Sequence[AdapterEntry], last: int, options: argparse.Namespace
) -> Row:
    num, records = len(entries), options.records
    setting = new_setting(backbone, entries, last, records)
    own = check(setting)
    before = backbone.work.forwards
    states = backbone.encode(setting.texts, setting.composed.cut)
    visits = predict(backbone, setting.composed, states).visits
    blocks = (backbone.work.forwards - before) / records
    adapted = peft_model(folder, num, last)
    plain, frozen = (BertModel.from_pretrained(folder, add_pooling_layer=False).eval() for _ in range(2))
    freeze_linears(frozen.requires_grad_(False))
    runs = (partial(bare, setting, plain), partial(bare, setting, frozen), partial(answer, setting),
            partial(told, setting), partial(peft_mixed, setting, adapted),
            partial(merged_copies, setting, plain))  # fmt: skip
    times = time_interleaved(runs, torch.device("cpu"), options.repeats)
    bare_ms, frozen_ms, answer_ms, told_ms, peft_ms, merged_ms = times
    return {
        "adapters": num, "last_layers": last, "records": records, "relative_throughput": round(bare_ms / answer_ms, 3),
        "vs_frozen_linear": round(frozen_ms / answer_ms, 3),
        "told_relative_throughput": round(bare_ms / told_ms, 3), "vs_peft": round(peft_ms / answer_ms, 3),
        "told_vs_peft": round(peft_ms / told_ms, 3), "vs_merged_copies": round(merged_ms / answer_ms, 3),
        "told_vs_merged_copies": round(merged_ms / told_ms, 3), "ms_per_record": round(answer_ms / records, 2),
        "blocks_per_record": round(blocks, 3), "floor": round(LAYERS / blocks, 3),
        "visits_per_record": round(sum(map(len, visits)) / records, 3), "own_adapter_visited": round(own, 3),
        "bytes_per_adapter": sum(t.nbytes for t in setting.composed.adapters[0].weights.values()),
        "bytes_per_merged_copy": sum(p.nbytes for p in plain.parameters()),
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapters", default="1,16,64,256", help="numbers of adapters, the last one is the headline")
    parser.add_argument(
        "--last-layers", type=int, default=2, help="blocks of six with adapters; 4 is a stream's default"
    )
    parser.add_argument("--records", type=int, default=CHUNK, help="texts at once, by default what batch scoring takes")
    parser.add_argument("--repeats", type=int, default=3, help="samples of each side, of which the best counts")
    parser.add_argument("--skip-served", action="store_true", help="leave out the served model and its clients")
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of a table")
    options = parser.parse_args(arguments)
    found = run([int(number) for number in options.adapters.split(",")], options)
    print(json.dumps(found) if options.json else _table(found))


def run(counts: Sequence[int], options: argparse.Namespace) -> Row:
    """The row of the last count; `others` holds those of the counts before it, and its own at the default depth."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory(prefix="deciduous-") as scratch:
        folder = Path(scratch) / "m6"
        save_m6(folder)
        backbone = load_backbone(str(folder))
        entries = new_entries(backbone, max(counts), options.last_layers)
        rows = [_told(measure(backbone, folder, entries[:num], options.last_layers, options)) for num in counts]
        headline = rows.pop()
        deeper = new_entries(backbone, counts[-1], DEFAULT_DEPTH)
        rows.append(_told(measure(backbone, folder, deeper, DEFAULT_DEPTH, options)))
        asked = [text for k in range(SERVED) for text in texts_of(k % counts[-1], 1, 9)]
        seen = (
            {} if options.skip_served
            else served.measure(Path(scratch), folder, entries[: counts[-1]], options.last_layers, asked)
        )  # fmt: skip
    return {**headline, **seen, "device": "cpu, 1 thread", "others": rows}


def _told(row: Row) -> Row:
    print(json.dumps(row), file=sys.stderr)
    return row


def _table(summary: dict[str, Any]) -> str:
    rows = [*summary.pop("others"), summary]
    return "\n".join("  ".join(f"{name} {value}" for name, value in row.items()) for row in rows)


if __name__ == "__main__":
    main()
