"""The knowledge check without a stream: the same facts, adapters and answers, trained one after the other.

`python -m benchmarks.knowledge_units --backbone smollm2 --keep FOLDER --json` keeps what it trained, so that a run that
was stopped goes on, and `--units own-bank,joint` trains only those: several processes may share a folder.
`benchmarks.knowledge` tells the same of a stream, with its tickets.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from benchmarks.knowledge import FORGOTTEN, HELD_OUT, Options, backbone_of, mean, options_of, parser
from benchmarks.knowledge_facts import DEPARTMENTS, Fact, facts_of
from benchmarks.running import say, tell
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
            say(f"training {name}")
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
    def read(self) -> dict[str, Documents]:
        return {d: self.documents(facts) for d, facts in self.facts.items()}

    @cached_property
    def model(self) -> LanguageModel:
        """One group and one adapter a department; adapters that do not earn their place would wait."""
        entries = [
            LanguageEntry(d, d, fit_gaussian([moments_of(embeddings(read.states))]), self.state(f"own-{d}").adapter)
            for d, read in self.read.items()
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


def measure(units: Units) -> Iterator[dict[str, Any]]:
    """Figures as they come: answers and leaks, forgetting, then the other ways of teaching.

    Shares of facts that greedy completion of the question answers exactly; perplexities of held-out documents.
    """
    departments = units.departments
    together = told(units, units.model, departments, departments)
    yield entitled(units, together)
    yield forgotten(units, together)
    yield {"recall_backbone": mean(shares(told(units, units.model, departments, departments, alone=True)))}
    yield not_entitled(units)
    yield {"perplexity_held_out": perplexities(units)}
    yield sequential(units)
    yield {"recall_joint": mean(under(units, "joint"))}


def told(units: Units, model: LanguageModel, groups: Sequence[str], of: Sequence[str], alone: bool = False) -> Answers:
    """What a holder of these groups is told of each department."""
    caller = Entitled(units.backbone, model, groups)
    asked = {d: [units.asked(fact) for fact in units.facts[d]] for d in of}
    return {d: right(units, units.facts[d], caller.score(units.read[d], alone, asked[d])) for d in of}


def under(units: Units, name: str) -> dict[str, float]:
    """Department -> share that one adapter alone answers."""
    adapted = AdaptedModel(units.backbone, units.spec, units.cut)
    adapted.load("own", units.state(name).adapter)
    return {
        d: share(right(units, facts, score_tokens(adapted, units.read[d], [{"own": 1.0}] * len(facts))).values())
        for d, facts in units.facts.items()
    }


def routed(units: Units, department: str, groups: Sequence[str]) -> list[dict[str, float]]:
    """The adapters that each of the department's questions retrieves for a holder of these groups."""
    facts = zip(units.read[department].states, units.facts[department], strict=True)
    questions = [state_TD[: units.asked(fact)] for state_TD, fact in facts]
    return Entitled(units.backbone, units.model, groups).route(questions)


def entitled(units: Units, together: Answers) -> dict[str, Any]:
    departments = units.departments
    own = {d: shares(told(units, units.model, [d], [d]))[d] for d in departments}
    of_all = shares(together)
    retrieved = {d: share(list(mix) == [d] for mix in routed(units, d, departments)) for d in departments}
    return {
        "departments": len(departments),
        "facts": sum(map(len, units.facts.values())),
        "recall_own_groups": mean(own),
        "recall_all_groups": mean(of_all),
        "lost_by_holding_all_groups": mean({d: own[d] - of_all[d] for d in departments}),
        "retrieval_top_1": mean(retrieved),
    }


def forgotten(units: Units, before: Answers) -> dict[str, Any]:
    *earlier, last = units.departments
    after = told(units, units.rebuilt, units.departments, units.departments)
    return {
        "forgotten_before": share(before[last][fact] for fact in units.gone),
        "forgotten_after": share(after[last][fact] for fact in units.gone),
        "same_department_before": share(ok for fact, ok in before[last].items() if fact not in units.gone),
        "same_department_after": share(ok for fact, ok in after[last].items() if fact not in units.gone),
        "other_departments_alike": all(after[d] == before[d] for d in earlier),
    }


def not_entitled(units: Units) -> dict[str, Any]:
    others = {d: [g for g in units.departments if g != d] for d in units.departments}
    recalled = {d: shares(told(units, units.model, groups, [d]))[d] for d, groups in others.items()}
    elsewhere = [bool(mix) for d, groups in others.items() for mix in routed(units, d, groups)]
    return {"recall_not_entitled": mean(recalled), "not_entitled_not_left_to_the_backbone": share(elsewhere)}


def sequential(units: Units) -> dict[str, Any]:
    *earlier, last = units.departments
    when_learned = {d: under(units, f"sequential-{d}")[d] for d in earlier}
    at_the_end = under(units, f"sequential-{last}")
    return {
        "recall_sequential": mean(at_the_end),
        "lost_on_earlier_batches_sequential": mean({d: when_learned[d] - at_the_end[d] for d in earlier}),
    }


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


def main() -> None:
    asking = parser(__doc__ or "", epochs=10)
    asking.add_argument("--keep", type=Path, help="folder for what is trained; default a temporary one")
    asking.add_argument("--units", help="train these alone, and tell nothing")
    asked = asking.parse_args()
    torch.set_num_threads(1)
    with TemporaryDirectory(prefix="deciduous-") as scratch:
        keep = asked.keep or Path(scratch)
        keep.mkdir(parents=True, exist_ok=True)
        units = Units(backbone_of(asked, Path(scratch)), keep, options_of(asked, 4e-3))
        if asked.units:
            for name in asked.units.split(","):
                units.state(name)
            return
        for figures in measure(units):
            tell(figures, asked.json)


if __name__ == "__main__":
    main()
