"""A long stream of recurring domains: BBC news as ten readers get and sort it, each in a spelling of their own.

A reader keeps the articles of two desks and drops those of the other three, so that one article is kept by one reader
and dropped by the next: no single head suits all of them, and two adapters merge well only where their readers agree.
Every article of a batch is new to its reader; a quarter of each desk's articles is never delivered and is asked at the
end in every domain.
"""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from string import ascii_lowercase

from tasks.newsroom import articles

DESKS = ("business", "entertainment", "politics", "sports", "tech")
TEST_SHARE = 4
WORDS = 60

NEXT = str.maketrans(ascii_lowercase, ascii_lowercase[1:] + ascii_lowercase[0])
LEET = str.maketrans("aeiost", "431057")

LOOKS: dict[str, Callable[[str], str]] = {
    "written": lambda word: word,
    "vowelless": lambda word: "".join(c for c in word if c not in "aeiouAEIOU") or word,
    "clipped": lambda word: word[:3],
    "cipher": lambda word: word.lower().translate(NEXT),
    "mirrored": lambda word: word[::-1],
    "spelt": " ".join,
    "hasty": lambda word: word[:1] + word[2:3] + word[1:2] + word[3:],
    "digits": lambda word: word.translate(LEET),
    "stuttered": lambda word: f"{word[:2]}-{word}",
    "shouted": lambda word: f"{word}!",
}
"""What a reader's service does to every word."""


@dataclass(frozen=True, slots=True)
class Domain:
    look: str
    kept: tuple[str, str]

    @property
    def name(self) -> str:
        return f"{self.look}-{'-'.join(self.kept)}"


def domains(number: int) -> list[Domain]:
    """The first `number` of ten; every pair of desks is kept by one reader."""
    return [Domain(look, kept) for look, kept in zip(LOOKS, combinations(DESKS, 2), strict=True)][:number]


class News:
    """Articles by desk, shuffled once; the same article may come in several domains, never twice in one."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._desks = {desk: articles(desk) for desk in DESKS}
        for paths in self._desks.values():
            self._rng.shuffle(paths)
        self._taken: dict[tuple[str, str], int] = {}

    def deliver(self, folder: Path, batches: int, rows: int, among: Sequence[Domain]) -> Iterator[Domain]:
        """Write a batch for each domain in turn, the turns shuffled; yields what was written, one at a time."""
        for number in range(batches):
            if number % len(among) == 0:
                turn = self._rng.sample(among, len(among))
            domain = turn[number % len(among)]
            lines = [self._row(domain, desk, self._next(domain, desk)) for desk in _spread(rows)]
            (folder / f"{number:03d}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            yield domain

    def questions(self, domain: Domain, rows: int) -> list[dict[str, str]]:
        """Rows of a domain that no batch ever held."""
        left = {desk: iter(paths[: len(paths) // TEST_SHARE]) for desk, paths in self._desks.items()}
        return [self._row(domain, desk, next(left[desk])) for desk in _spread(rows)]

    def _next(self, domain: Domain, desk: str) -> Path:
        training = self._desks[desk][len(self._desks[desk]) // TEST_SHARE :]
        number = self._taken.get((domain.name, desk), 0)
        self._taken[domain.name, desk] = number + 1
        if number >= len(training):
            raise ValueError(f"{domain.name} has no {desk} article left; ask for fewer batches or rows")
        return training[number]

    def _row(self, domain: Domain, desk: str, path: Path) -> dict[str, str]:
        words = " ".join(path.read_text(encoding="latin-1").split()).split(" ")[:WORDS]
        label = "keep" if desk in domain.kept else "drop"
        text = " ".join(map(LOOKS[domain.look], words))
        return {"id": f"{domain.name}/{desk}/{path.name}", "text": text, "label": label}


def _spread(rows: int) -> list[str]:
    """A desk for each row, all of them as often."""
    return [DESKS[n % len(DESKS)] for n in range(rows)]
