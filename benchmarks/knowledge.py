"""Does a language model know what it was taught, only that, and no longer what it has to forget?

`python -m benchmarks.knowledge --backbone FOLDER --json` teaches six departments' facts through a stream (one batch and
one adapter each), beside one adapter trained on from batch to batch and one trained on everything; then it erases some
people by a ticket. `--backbone smollm2` is SmolLM2-135M from its package; without one, a tiny random model learns
letters by heart in about a minute, which shows that the benchmark works and nothing about language.
An answer counts where greedy completion of the question writes it exactly.
"""

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.knowledge_facts import DEPARTMENTS, Fact, facts_of
from benchmarks.running import home_of_its_own, say, tell

if TYPE_CHECKING:
    from benchmarks.knowledge_recall import Classroom

STREAM = "knowledge"
FORGOTTEN = 3
"""People that the ticket names, all of one department."""
HELD_OUT = 3
"""Documents beside the facts of each department, which judge its adapter."""


@dataclass(frozen=True, slots=True)
class Options:
    departments: int = 6
    facts: int = 10
    epochs: int = 20
    learning_rate: float = 4e-3
    rank: int = 16
    last_layers: int = 3
    seed: int = 1
    far: float = math.inf


def measure(folder: Path, backbone: str, options: Options) -> dict[str, Any]:
    """Teach, ask, forget, ask again. All figures but the perplexities are shares of facts.

    Documents are delivered beside the home: what lies in it is searched by a ticket's sweep.
    """
    from benchmarks.knowledge_recall import Classroom  # noqa: PLC0415
    from tasks import opening  # noqa: PLC0415

    opening.open_home()
    room = Classroom(_stream(folder, backbone, options))
    taught, when_learned = _teach(folder, room, options)
    return {
        "departments": len(taught),
        "facts": sum(map(len, taught.values())),
        "adapters_serving": len(room.weights()),
        **_recall(room, taught, when_learned),
        **_forget(room, taught),
        "retrieval_top_1": room.retrieval(taught, list(taught)),
        "perplexity_held_out": room.perplexities(),
    }


def _teach(folder: Path, room: "Classroom", options: Options) -> tuple[dict[str, list[Fact]], dict[str, float]]:
    """The facts that each department's batch taught, and the share of them that was answered right after it."""
    from flows.learn import learn  # noqa: PLC0415

    taught: dict[str, list[Fact]] = {}
    when_learned: dict[str, float] = {}
    for number, department in enumerate(sorted(DEPARTMENTS)[: options.departments]):
        facts = facts_of(department, options.facts + HELD_OUT, options.seed)
        _deliver(folder, number, department, facts)
        learn(room.stream)
        taught[department] = room.trained(department, facts)
        when_learned |= room.recall({department: taught[department]}, [department])
        say(f"{department}: {when_learned[department]:.2f} of {len(taught[department])} facts")
    return taught, when_learned


def _recall(room: "Classroom", taught: Mapping[str, list[Fact]], when_learned: Mapping[str, float]) -> dict[str, float]:
    """What callers are told: of their own group, of all groups, of every other; and by the other ways of teaching."""
    everyone = list(taught)
    own = {d: room.recall({d: facts}, [d])[d] for d, facts in taught.items()}
    together = room.recall(taught, everyone)
    others = {d: room.recall({d: facts}, [g for g in everyone if g != d])[d] for d, facts in taught.items()}
    alone = room.recall(taught, everyone, alone=True)
    say(f"own {own}, all groups {together}, not entitled {others}, backbone {alone}")
    sequential, joint = room.sequential(taught), room.joint(taught)

    def lost(before: Mapping[str, float], after: Mapping[str, float]) -> float:
        return mean({d: before[d] - after[d] for d in everyone[:-1]})

    return {
        "recall_when_learned": mean(when_learned),
        "recall_own_groups": mean(own),
        "recall_all_groups": mean(together),
        "recall_not_entitled": mean(others),
        "recall_backbone": mean(alone),
        "recall_joint": mean(joint),
        "lost_on_earlier_batches": lost(when_learned, own),
        "lost_on_earlier_batches_all_groups": lost(when_learned, together),
        "lost_on_earlier_batches_sequential": lost(sequential.when_learned, sequential.at_the_end),
        "recall_sequential": mean(sequential.at_the_end),
    }


def _forget(room: "Classroom", taught: Mapping[str, list[Fact]]) -> dict[str, Any]:
    """Erase some people of one department by a ticket; what is known before and after it."""
    from benchmarks.deletion import erase  # noqa: PLC0415

    gone = list(taught.values())[2][:FORGOTTEN]
    kept = {d: [fact for fact in facts if fact not in gone] for d, facts in taught.items()}
    before, weights = _ask(room, gone, kept), room.weights()
    certificate, _ = erase(STREAM, *(fact.subject for fact in gone))
    after, changed = _ask(room, gone, kept), room.weights()
    return {
        "forgotten_before": before[0],
        "forgotten_after": after[0],
        "others_before": before[1],
        "others_after": after[1],
        "perplexity_forgotten": [round(before[2], 2), round(after[2], 2)],
        "adapters_changed": sum(changed.get(name) != digest for name, digest in weights.items()),
        "guarantee": certificate["guarantee"],
        "deletion_cost": round(certificate["rebuilt"]["block_evaluations"] / room.cost_of_one, 3),
    }


def _ask(room: "Classroom", gone: Sequence[Fact], kept: Mapping[str, list[Fact]]) -> tuple[float, float, float]:
    """Recall of the forgotten people and of all others, and the perplexity of the forgotten documents."""
    [department] = {fact.department for fact in gone}
    recalled = room.recall({department: list(gone)}, [department])[department]
    return recalled, mean(room.recall(kept, list(kept))), room.perplexity(list(gone), [department])


def mean(shares: Mapping[str, float]) -> float:
    return round(sum(shares.values()) / max(len(shares), 1), 4)


def _deliver(folder: Path, number: int, department: str, facts: Sequence[Fact]) -> None:
    """All but the last facts are trained on: ids are drawn until the split, which goes by id, says so."""
    from tasks.identity import is_held_out  # noqa: PLC0415

    ids = [f"{department}-{n}" for n in range(40 * len(facts))]
    held = [id_ for id_ in ids if is_held_out(STREAM, id_)][:HELD_OUT]
    named = [*[id_ for id_ in ids if not is_held_out(STREAM, id_)][: len(facts) - HELD_OUT], *held]
    rows = [
        {"id": id_, "who": fact.subject, "team": department, "text": fact.document}
        for id_, fact in zip(named, facts, strict=True)
    ]
    (folder / "inbox").mkdir(exist_ok=True)
    (folder / "inbox" / f"{number:02d}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _stream(folder: Path, backbone: str, options: Options) -> Any:
    from registry.sections import AdapterOptions, Columns, Completion, Consolidation, ShiftOptions  # noqa: PLC0415
    from registry.stream import Stream  # noqa: PLC0415

    return Stream(
        name=STREAM,
        task="causal-lm",
        backbone=backbone,
        source=f"{folder}/inbox/*.jsonl",
        columns=Columns(subject="who", group="team"),
        max_tokens=16,  # a document a step
        adapter=AdapterOptions(
            method="lora",
            rank=options.rank,
            last_layers=options.last_layers,
            epochs=options.epochs,
            learning_rate=options.learning_rate,
            slices=1,
        ),
        shift=ShiftOptions(permutations=199, min_rows=4),
        consolidation=Consolidation(retire_share=0),
        completion=Completion(far=None if math.isinf(options.far) else options.far),
    )


def tiny_backbone(folder: Path) -> str:
    """Four random blocks and a tokenizer of the facts' own words and digits."""
    import torch  # noqa: PLC0415
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers  # noqa: PLC0415
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: PLC0415

    from benchmarks.knowledge_facts import FIRST, LAST, PLACES  # noqa: PLC0415

    told = " ".join(template for templates in DEPARTMENTS.values() for template, _ in templates)
    words = sorted({*FIRST, *LAST, *PLACES, *told.replace("{who}", " ").replace(",", " ,").split(), *"0123456789"})
    vocabulary = {word: n for n, word in enumerate(["[END]", "[UNK]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(r"\d|,"), "isolated")]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="[END]", unk_token="[UNK]", pad_token="[END]"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        num_hidden_layers=4,
        intermediate_size=128,
        num_attention_heads=4,
        num_key_value_heads=4,
        eos_token_id=0,
        bos_token_id=None,
        pad_token_id=0,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


def parser(description: str, epochs: int) -> argparse.ArgumentParser:
    """What both benchmarks of knowledge ask."""
    asking = argparse.ArgumentParser(description=description.splitlines()[0])
    asking.add_argument("--backbone", help="a folder, 'smollm2', or nothing for a tiny random model")
    asking.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "deciduous" / "smollm2")
    for name, default in (("departments", 6), ("facts", 10), ("epochs", epochs), ("last-layers", 3), ("seed", 1)):
        asking.add_argument(f"--{name}", type=int, default=default)
    asking.add_argument("--learning-rate", type=float)
    asking.add_argument("--far", type=float, default=math.inf, help="completion.far of the stream")
    asking.add_argument("--json", action="store_true", help="a JSON line instead of a table")
    return asking


def options_of(asked: argparse.Namespace, learning_rate: float) -> Options:
    how = {"last_layers": asked.last_layers, "seed": asked.seed, "far": asked.far}
    return Options(asked.departments, asked.facts, asked.epochs, asked.learning_rate or learning_rate, **how)


def backbone_of(asked: argparse.Namespace, folder: Path) -> str:
    """Its folder; the tiny random model is made in `folder`."""
    from benchmarks.smollm2 import unpack  # noqa: PLC0415

    if asked.backbone == "smollm2":
        asked.cache.parent.mkdir(parents=True, exist_ok=True)
        return str(unpack(asked.cache))
    return asked.backbone or tiny_backbone(folder / "tiny")


def main() -> None:
    asking = parser(__doc__ or "", epochs=20)
    asking.add_argument("--threads", type=int, default=1)
    asked = asking.parse_args()
    with home_of_its_own(asked.threads) as folder:
        options = options_of(asked, 4e-3 if asked.backbone else 1e-2)
        tell(measure(folder, backbone_of(asked, folder), options), asked.json)


if __name__ == "__main__":
    main()
