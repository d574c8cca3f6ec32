"""Asking a stream's champion for facts, and the two other ways of teaching one adapter."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from benchmarks.knowledge_facts import Fact
from infra import database
from registry import contents, versions
from registry.stream import Stream
from registry.versions import CHAMPION
from tasks.assembly import load_model
from tasks.backbones import adapter_spec, cut_of, open_language
from tasks.identity import seed_of
from tasks.learning.language.lora import AdaptedModel
from tasks.learning.language.scoring import TokenScores, perplexity, score_tokens
from tasks.learning.language.serving import Entitled, LanguageModel
from tasks.learning.language.training import Documents, train_documents
from tasks.learning.training import TrainState
from tasks.manifests import load_manifest
from tasks.rows import held_out, trainable
from tasks.shards import load_rows
from tasks.training import recipe_of

Taught = Mapping[str, Sequence[Fact]]


@dataclass(frozen=True, slots=True)
class Recalled:
    when_learned: dict[str, float]
    at_the_end: dict[str, float]


class Classroom:
    """Encodes every fact once; figures are exact answers to questions, by greedy completion."""

    def __init__(self, stream: Stream) -> None:
        self.stream, self.backbone = stream, open_language(stream)
        self.cut, self.spec = cut_of(stream, self.backbone), adapter_spec(stream)
        self._documents: dict[str, tuple[list[int], Tensor]] = {}
        self.cost_of_one = 1.0

    def trained(self, department: str, facts: Sequence[Fact]) -> list[Fact]:
        """Those of the facts that the stream trains on; the others are held out."""
        with database.transaction() as session:
            shards = [s for s in contents.done_shards(session, self.stream.name) if s.group == department]
        written = {row.input.decode() for shard in shards for row in trainable(load_rows(shard))}
        return [fact for fact in facts if fact.document in written]

    def documents(self, facts: Sequence[Fact]) -> Documents:
        missing = [fact.document for fact in facts if fact.document not in self._documents]
        tokens = [self.backbone.document(text) for text in missing]
        states = self.backbone.encode_tokens(tokens, self.cut)
        self._documents |= {text: (ids, state) for text, ids, state in zip(missing, tokens, states, strict=True)}
        found = [self._documents[fact.document] for fact in facts]
        return Documents([ids for ids, _ in found], [state for _, state in found])

    def asked(self, fact: Fact) -> int:
        """How many tokens the question has."""
        return len(self.backbone.prompt(fact.question))

    def champion(self) -> LanguageModel:
        with database.transaction() as session:
            number = versions.alias_of(session, self.stream.name, CHAMPION)
        assert number is not None, "no version was promoted"
        model = load_model(load_manifest(self.stream.name, number))
        assert isinstance(model, LanguageModel)
        return model

    def recall(self, taught: Taught, groups: Sequence[str], alone: bool = False) -> dict[str, float]:
        """Department -> share of its facts that a holder of these groups is told."""
        entitled = Entitled(self.backbone, self.champion(), groups)
        facts = [fact for each in taught.values() for fact in each]
        scores = entitled.score(self.documents(facts), alone, [self.asked(fact) for fact in facts])
        return self._shares(taught, facts, scores)

    def retrieval(self, taught: Taught, groups: Sequence[str]) -> float:
        """Share of questions whose likeliest adapter is that of their own department."""
        model = self.champion()
        group_of = {entry.adapter_id: entry.group for entry in model.entries}
        facts = [fact for each in taught.values() for fact in each]
        states = [s[: self.asked(f)] for s, f in zip(self.documents(facts).states, facts, strict=True)]
        routed = Entitled(self.backbone, model, groups).route(states)
        hits = [group_of.get(max(mix, key=lambda name: mix[name], default="")) == f.department
                for mix, f in zip(routed, facts, strict=True)]  # fmt: skip
        return round(sum(hits) / len(hits), 4)

    def perplexity(self, facts: Sequence[Fact], groups: Sequence[str]) -> float:
        return perplexity(Entitled(self.backbone, self.champion(), groups).score(self.documents(facts)))

    def perplexities(self) -> list[float]:
        """Over the held-out documents of all departments: of the champion and of the backbone alone."""
        from tasks.evaluation import score_shards, total  # noqa: PLC0415

        with database.transaction() as session:
            shards = contents.done_shards(session, self.stream.name)
        judging = [shard for shard in shards if held_out(load_rows(shard))]
        scores = score_shards(self.stream, self.champion(), judging)
        return [round(p, 2) for p in total(list(scores.values())).perplexities]

    def weights(self) -> dict[str, str]:
        """Digest of the weights of every serving adapter."""
        with database.transaction() as session:
            number = versions.alias_of(session, self.stream.name, CHAMPION)
        assert number is not None
        manifest = load_manifest(self.stream.name, number)
        return {adapter["adapter_id"]: adapter["weights"]["sha256"] for adapter in manifest["adapters"]}

    def sequential(self, taught: Taught) -> Recalled:
        """One adapter, trained on from batch to batch on the newest facts alone."""
        state: TrainState | None = None
        when_learned: dict[str, float] = {}
        for department, facts in taught.items():
            before = self.backbone.work.forwards + self.backbone.work.backwards
            state = self._train(facts, department, state)
            self.cost_of_one = self.backbone.work.forwards + self.backbone.work.backwards - before
            when_learned |= self._recall_of(state, {department: facts})
        assert state is not None
        return Recalled(when_learned, self._recall_of(state, taught))

    def joint(self, taught: Taught) -> dict[str, float]:
        """One adapter, trained on everything at once."""
        return self._recall_of(
            self._train([fact for facts in taught.values() for fact in facts], "joint", None), taught
        )

    def _train(self, facts: Sequence[Fact], name: str, start: TrainState | None) -> TrainState:
        seed = seed_of("benchmark", name)
        where = (self.cut, self.spec, recipe_of(self.stream))
        return train_documents(self.backbone, self.documents(facts), *where, seed, start)

    def _recall_of(self, state: TrainState, taught: Taught) -> dict[str, float]:
        model = AdaptedModel(self.backbone, self.spec, self.cut)
        model.load("own", state.adapter)
        facts = [fact for each in taught.values() for fact in each]
        scores = score_tokens(model, self.documents(facts), [{"own": 1.0}] * len(facts))
        return self._shares(taught, facts, scores)

    def _shares(self, taught: Taught, facts: Sequence[Fact], scores: Sequence[TokenScores]) -> dict[str, float]:
        """The answer stands between the question and the token that ends the document."""
        right = {
            fact: bool(each.right_T[self.asked(fact) - 1 : -1].all()) for fact, each in zip(facts, scores, strict=True)
        }
        return {d: round(sum(right[f] for f in each) / max(len(each), 1), 4) for d, each in taught.items()}
