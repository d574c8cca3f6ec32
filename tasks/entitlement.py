"""Which groups a caller may use: decided before anything is scored."""

from collections.abc import Collection

from registry.errors import StateError

ALL_GROUPS = "*"


def permitted(known: Collection[str], groups: Collection[str]) -> tuple[str, ...]:
    """The known groups that the caller holds, sorted. '*' asks for all, for the stream's owner.

    A caller who names none is answered where the stream has one group only. Raises StateError when nothing is left:
    no answer rather than an answer from elsewhere.
    """
    if (not groups and len(known) == 1) or ALL_GROUPS in groups:
        return tuple(sorted(known))
    allowed = tuple(sorted(set(known) & set(groups)))
    if not allowed:
        asked = ", ".join(sorted(groups)) or "none"
        raise StateError(f"groups asked for: {asked}; this model serves none of them: ask as a group that has data")
    return allowed
