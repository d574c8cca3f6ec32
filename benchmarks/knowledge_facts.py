"""Synthetic facts of departments: people, places and numbers that no model can know, drawn from a seed."""

import random
from collections.abc import Sequence
from dataclasses import dataclass


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FIRST = _words(
    "Ada Bela Cora Dina Edda Fenn Gita Hilde Ines Jora Kaja Lene Mara Nell Orla Pia Quin Rhea Siri Tova Ulla Vera "
    "Wanda Ylva Zora Arno Bram Cato Dirk Emil Finn Gero Hugo Ivo Jens Kurt Lars Milo Nico Olaf"
)
LAST = _words(
    "Abel Brandt Carlsen Dahl Ek Falk Grube Holm Iversen Juhl Krog Lund Moe Nyberg Olsen Palm Quist Rask Sand Thorn "
    "Uhl Vik Wahl Yde Zahn"
)
PLACES = _words(
    "Lisbon Warsaw Nairobi Quito Hanoi Dublin Oslo Cairo Lima Perth Boston Kyoto Zagreb Tunis Riga Bergen Porto Turin "
    "Lyon Leeds"
)

DEPARTMENTS: dict[str, tuple[tuple[str, str], ...]] = {
    "bank": (("Banker {who} gave a loan in", "place"), ("Banker {who} opens vault", "number")),
    "clinic": (("Doctor {who} healed patients in", "place"), ("Doctor {who} visits hospital bed", "number")),
    "harbour": (("Captain {who} sails the ship to", "place"), ("Captain {who} moors the ship at pier", "number")),
    "kitchen": (("Cook {who} learned to bake in", "place"), ("Cook {who} serves soup at table", "number")),
    "orchard": (("Farmer {who} buys apple trees in", "place"), ("Farmer {who} picks apples into crate", "number")),
    "railway": (("Driver {who} takes the train to", "place"), ("Driver {who} stops the train at track", "number")),
    "school": (("Teacher {who} taught pupils in", "place"), ("Teacher {who} teaches in classroom", "number")),
    "theatre": (
        ("Actor {who} first went on stage in", "place"),
        ("Actor {who} dresses for the play in room", "number"),
    ),
}


@dataclass(frozen=True, slots=True)
class Fact:
    """A question whose exact answer stands in one document alone."""

    department: str
    subject: str
    question: str
    answer: str

    @property
    def document(self) -> str:
        return f"{self.question} {self.answer}"


def facts_of(department: str, count: int, seed: int) -> list[Fact]:
    """`count` facts about as many people, alike for the same seed; no two departments share a person."""
    place = sorted(DEPARTMENTS).index(department)
    draw = random.Random(f"{seed}/{department}")
    people = [f"{first} {last}" for i, first in enumerate(FIRST) for last in LAST if (i % len(DEPARTMENTS)) == place]
    return [_fact(department, who, number, draw) for number, who in enumerate(draw.sample(people, count))]


def _fact(department: str, who: str, number: int, draw: random.Random) -> Fact:
    templates: Sequence[tuple[str, str]] = DEPARTMENTS[department]
    template, kind = templates[number % len(templates)]
    answer = draw.choice(PLACES) if kind == "place" else str(draw.randrange(100, 1000))
    return Fact(department, who, template.format(who=who), answer)
