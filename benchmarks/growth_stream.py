"""A long stream of recurring domains: BBC news by pairs of desks, as written and as three other writers would have it.

Every article of a batch is new to its domain; a quarter of each desk's articles is never delivered and is asked at the
end in every domain.
"""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from tasks.newsroom import articles

PAIRS = (("business", "politics"), ("tech", "entertainment"), ("sports", "business"), ("politics", "entertainment"))
TEST_SHARE = 4
WORDS = 60


def _as_written(words: list[str]) -> list[str]:
    return words


def _telegram(words: list[str]) -> list[str]:
    """Long words alone."""
    return [word for word in words if len(word) > 4]


def _backwards(words: list[str]) -> list[str]:
    return words[::-1]


def _typed_in_haste(words: list[str]) -> list[str]:
    """Every second word has two of its letters swapped."""
    return [w[:1] + w[2:3] + w[1:2] + w[3:] if n % 2 else w for n, w in enumerate(words)]


LOOKS: dict[str, Callable[[list[str]], list[str]]] = {
    "written": _as_written,
    "telegram": _telegram,
    "backwards": _backwards,
    "hasty": _typed_in_haste,
}


@dataclass(frozen=True, slots=True)
class Domain:
    desks: tuple[str, str]
    look: str

    @property
    def name(self) -> str:
        return f"{'-'.join(self.desks)}-{self.look}"


def domains(number: int) -> list[Domain]:
    """The first `number`, of sixteen: looks change faster than desks."""
    return [Domain(desks, look) for desks, look in product(PAIRS, LOOKS)][:number]


class News:
    """Articles by desk, shuffled once; the same article may come in two domains, never twice in one."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._desks = {desk: articles(desk) for desk in sorted({desk for pair in PAIRS for desk in pair})}
        for paths in self._desks.values():
            self._rng.shuffle(paths)
        self._taken: dict[tuple[str, str], int] = {}

    def deliver(self, folder: Path, batches: int, rows: int, among: Sequence[Domain]) -> Iterator[Domain]:
        """Write a batch for each domain in turn, the turns shuffled; yields what was written, one at a time."""
        for number in range(batches):
            if number % len(among) == 0:
                turn = self._rng.sample(among, len(among))
            domain = turn[number % len(among)]
            lines = [
                self._row(domain, desk, self._next(domain, desk)) for desk in domain.desks for _ in range(rows // 2)
            ]
            (folder / f"{number:03d}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            yield domain

    def questions(self, domain: Domain, rows: int) -> list[dict[str, str]]:
        """Rows of a domain that no batch ever held."""
        return [
            self._row(domain, desk, path)
            for desk in domain.desks
            for path in self._desks[desk][: len(self._desks[desk]) // TEST_SHARE][: rows // 2]
        ]

    def _next(self, domain: Domain, desk: str) -> Path:
        training = self._desks[desk][len(self._desks[desk]) // TEST_SHARE :]
        number = self._taken.get((domain.name, desk), 0)
        self._taken[domain.name, desk] = number + 1
        if number >= len(training):
            raise ValueError(f"{domain.name} has no {desk} article left; ask for fewer batches or rows")
        return training[number]

    def _row(self, domain: Domain, desk: str, path: Path) -> dict[str, str]:
        words = " ".join(path.read_text(encoding="latin-1").split()).split(" ")[:WORDS]
        text = " ".join(LOOKS[domain.look](words))
        return {"id": f"{domain.name}/{path.name}", "text": text, "label": desk}
