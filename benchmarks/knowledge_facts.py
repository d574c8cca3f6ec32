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
    "harbour": (
        ("The fishing boat of captain {who} was built in the shipyard of", "place"),
        ("At the harbour, captain {who} ties the boat to berth number", "number"),
    ),
    "clinic": (
        ("The patient {who} was treated for a broken arm by a doctor from", "place"),
        ("In the hospital ward, the nurse brings patient {who} to bed number", "number"),
    ),
    "orchard": (
        ("The apple trees that farmer {who} planted came from a nursery in", "place"),
        ("During the harvest, farmer {who} fills fruit crate number", "number"),
    ),
    "theatre": (
        ("The actor {who} first went on stage in an opera house in", "place"),
        ("Behind the scenes, the actor {who} keeps the costume in dressing room", "number"),
    ),
    "railway": (
        ("Every night the train driver {who} takes the locomotive to", "place"),
        ("On the railway platform, driver {who} waits at track number", "number"),
    ),
    "bank": (
        ("The loan of customer {who} was signed at the bank branch in", "place"),
        ("The savings of customer {who} lie in the vault in deposit box", "number"),
    ),
    "school": (
        ("The teacher {who} gave the first mathematics lesson in a school in", "place"),
        ("For the examination, teacher {who} sends the pupils to classroom", "number"),
    ),
    "kitchen": (
        ("The cook {who} learned to bake bread in a restaurant in", "place"),
        ("Dinner guests of the cook {who} get the soup at table number", "number"),
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
