"""The knowledge check without a stream: the same facts, adapters and answers, trained one after the other.

`python -m benchmarks.knowledge_units --backbone smollm2 --keep FOLDER --json` keeps what it trained, so that a run that
was stopped goes on, and `--units own-bank,joint` trains only those: several processes may share a folder.
`benchmarks.knowledge` tells the same of a stream, with its tickets.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from benchmarks.knowledge import FORGOTTEN, HELD_OUT, Options, tiny_backbone
from benchmarks.knowledge_facts import DEPARTMENTS, Fact, facts_of
from benchmarks.smollm2 import unpack
from tasks.learning.adapters import AdapterSpec
from tasks.learning.language.backbones import load_language_backbone
from tasks.learning.language.lora import AdaptedModel
from tasks.learning.language.retrieval import embeddings, fit_gaussian, moments_of
from tasks.learning.language.scoring import TokenScores, perplexity, score_tokens
from tasks.learning.language.serving import Entitled, LanguageEntry, LanguageModel
from tasks.learning.language.training import Documents, train_documents
from tasks.learning.training import Recipe, TrainState

Answers = Mapping[str, Mapping[Fact, bool]]

CONTEXT = 16
"""Tokens; a document fits, so that each is a step of its own."""


class Units:
    """Every training of the check by name, loaded where it was done before."""

    def __init__(self, backbone: str, keep: Path, options: Options) -> None:
        self.keep, self.options = keep, options
        self.backbone = load_language_backbone(backbone, max_tokens=CONTEXT)
        self.cut = self.backbone.num_blocks - options.last_layers
        self.spec = AdapterSpec("lora", options.rank, options.last_layers)
        self.departments = sorted(DEPARTMENTS)[: options.departments]
        every = {d: facts_of(d, options.facts + HELD_OUT, options.seed) for d in self.departments}
        self.facts = {d: facts[: options.facts] for d, facts in every.items()}
        self.held_out = {d: facts[options.facts :] for d, facts in every.items()}
        self.gone = self.facts[self.departments[-1]][:FORGOTTEN]

    def names(self) -> list[str]:
        own, sequential = ([f"{kind}-{d}" for d in self.departments] for kind in ("own", "sequential"))
        return [*own, *sequential, "joint", "rebuilt"]

    def state(self, name: str) -> TrainState:
        path = self.keep / f"{name}.safetensors"
        if not path.exists():
            _say(f"training {name}")
            state = self._train(name)
            half = path.with_suffix(".half")
            save_file(state.to_tensors(), half)
            half.replace(path)
        return TrainState.from_tensors(load_file(path))

    def _train(self, name: str) -> TrainState:
        kind, _, department = name.partition("-")
        start, facts = None, self.facts.get(department, [])
        if kind == "joint":
            facts = [fact for each in self.facts.values() for fact in each]
        elif kind == "rebuilt":
            facts = [fact for fact in self.facts[self.departments[-1]] if fact not in self.gone]
        elif kind == "sequential" and department == self.departments[0]:
            return self.state(f"own-{department}")  # it is the same training
        elif kind == "sequential":
            start = self.state(f"sequential-{self.departments[self.departments.index(department) - 1]}")
        options, seed = self.options, self.options.seed + len(department)
        recipe = Recipe(epochs=options.epochs, learning_rate=options.learning_rate, minibatch=1)
        return train_documents(self.backbone, self.documents(facts), self.cut, self.spec, recipe, seed, start)

    def documents(self, facts: Sequence[Fact]) -> Documents:
        tokens = [self.backbone.document(fact.document) for fact in facts]
        return Documents(tokens, self.backbone.encode_tokens(tokens, self.cut))

    def asked(self, fact: Fact) -> int:
        return len(self.backbone.prompt(fact.question))

    @cached_property
    def model(self) -> LanguageModel:
        """One group and one adapter a department; adapters that do not earn their place would wait."""
        entries = [
            LanguageEntry(
                d, d, fit_gaussian([moments_of(embeddings(self.documents(f).states))]), self.state(f"own-{d}").adapter
            )
            for d, f in self.facts.items()
        ]
        return LanguageModel(self.cut, self.spec, frozenset(self.departments), tuple(entries), far=self.options.far)

    @cached_property
    def rebuilt(self) -> LanguageModel:
        """The last department's adapter and its Gaussian anew, without the forgotten people."""
        *others, last = self.model.entries
        left = [fact for fact in self.facts[last.group] if fact not in self.gone]
        gaussian = fit_gaussian([moments_of(embeddings(self.documents(left).states))])
        clean = replace(last, gaussian=gaussian, weights=self.state("rebuilt").adapter)
        return replace(self.model, entries=(*others, clean))


def measure(units: Units) -> Iterator[dict[str, float | bool | list[float]]]:
    """Figures as they come: answers and leaks, forgetting, then the other ways of teaching.

    Shares of facts that greedy completion of the question answers exactly; perplexities of held-out documents.
    """
    departments, everyone, read = (
        units.departments,
        units.facts,
        {d: units.documents(f) for d, f in units.facts.items()},
    )
    last, earlier = departments[-1], departments[:-1]

    def told(model: LanguageModel, groups: Sequence[str], of: Sequence[str], alone: bool = False) -> Answers:
        caller = Entitled(units.backbone, model, groups)
        return {
            d: right(units, everyone[d], caller.score(read[d], alone, [units.asked(fact) for fact in everyone[d]]))
            for d in of
        }

    def under(name: str) -> dict[str, float]:
        adapted = AdaptedModel(units.backbone, units.spec, units.cut)
        adapted.load("own", units.state(name).adapter)
        return {
            d: share(right(units, facts, score_tokens(adapted, read[d], [{"own": 1.0}] * len(facts))).values())
            for d, facts in everyone.items()
        }

    own = {d: shares(told(units.model, [d], [d]))[d] for d in departments}
    together = told(units.model, departments, departments)
    states = {d: [s[: units.asked(f)] for s, f in zip(read[d].states, everyone[d], strict=True)] for d in departments}
    routed = {d: Entitled(units.backbone, units.model, departments).route(states[d]) for d in departments}
    yield {
        "departments": len(departments),
        "facts": sum(map(len, everyone.values())),
        "recall_own_groups": mean(own),
        "recall_all_groups": mean(shares(together)),
        "lost_by_holding_all_groups": mean({d: own[d] - shares(together)[d] for d in departments}),
        "retrieval_top_1": mean({d: share(list(mix) == [d] for mix in mixes) for d, mixes in routed.items()}),
    }
    after = told(units.rebuilt, departments, departments)
    yield {
        "forgotten_before": share(together[last][fact] for fact in units.gone),
        "forgotten_after": share(after[last][fact] for fact in units.gone),
        "same_department_before": share(ok for fact, ok in together[last].items() if fact not in units.gone),
        "same_department_after": share(ok for fact, ok in after[last].items() if fact not in units.gone),
        "other_departments_alike": all(after[d] == together[d] for d in earlier),
    }
    yield {"recall_backbone": mean(shares(told(units.model, departments, departments, alone=True)))}
    others = {d: shares(told(units.model, [g for g in departments if g != d], [d]))[d] for d in departments}
    routed_elsewhere = [
        bool(mix)
        for d in departments
        for mix in Entitled(units.backbone, units.model, [g for g in departments if g != d]).route(states[d])
    ]
    yield {"recall_not_entitled": mean(others), "not_entitled_not_left_to_the_backbone": share(routed_elsewhere)}
    yield {"perplexity_held_out": perplexities(units)}
    sequential = {d: under(f"sequential-{d}")[d] for d in departments}
    at_the_end = under(f"sequential-{last}")
    yield {
        "recall_sequential": mean(at_the_end),
        "lost_on_earlier_batches_sequential": mean({d: sequential[d] - at_the_end[d] for d in earlier}),
    }
    yield {"recall_joint": mean(under("joint"))}


def perplexities(units: Units) -> list[float]:
    """Of held-out documents: under what they retrieve, and under the backbone alone."""
    documents = units.documents([fact for facts in units.held_out.values() for fact in facts])
    caller = Entitled(units.backbone, units.model, units.departments)
    return [round(perplexity(caller.score(documents, alone)), 2) for alone in (False, True)]


def right(units: Units, facts: Sequence[Fact], scores: Sequence[TokenScores]) -> dict[Fact, bool]:
    """The answer stands between the question and the token that ends the document."""
    return {f: bool(s.right_T[units.asked(f) - 1 : -1].all()) for f, s in zip(facts, scores, strict=True)}


def share(hits: Any) -> float:
    counted = [bool(hit) for hit in hits]
    return round(sum(counted) / max(len(counted), 1), 4)


def shares(found: Mapping[str, Mapping[Fact, bool]]) -> dict[str, float]:
    return {d: share(hits.values()) for d, hits in found.items()}


def mean(figures: Mapping[str, float]) -> float:
    return round(sum(figures.values()) / max(len(figures), 1), 4)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backbone", help="a folder, 'smollm2', or nothing for a tiny random model")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "deciduous" / "smollm2")
    parser.add_argument("--keep", type=Path, help="folder for what is trained; default a temporary one")
    parser.add_argument("--units", help="train these alone, and tell nothing")
    for name, default in (("departments", 6), ("facts", 10), ("epochs", 10), ("last-layers", 3), ("seed", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    parser.add_argument("--far", type=float, default=math.inf, help="completion.far of a stream")
    parser.add_argument("--json", action="store_true", help="a JSON line for each part")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    options = Options(
        asked.departments,
        asked.facts,
        asked.epochs,
        asked.learning_rate,
        last_layers=asked.last_layers,
        seed=asked.seed,
        far=asked.far,
    )
    with TemporaryDirectory(prefix="deciduous-") as scratch:
        keep = asked.keep or Path(scratch)
        keep.mkdir(parents=True, exist_ok=True)
        tiny = not asked.backbone
        folder = tiny_backbone(Path(scratch) / "tiny") if tiny else asked.backbone
        units = Units(str(unpack(asked.cache)) if folder == "smollm2" else folder, keep, options)
        if asked.units:
            for name in asked.units.split(","):
                units.state(name)
            return
        for figures in measure(units):
            lines = [f"{name:36} {value}" for name, value in figures.items()]
            print(json.dumps(figures) if asked.json else "\n".join(lines), flush=True)


if __name__ == "__main__":
    main()
