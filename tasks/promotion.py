"""Make a version champion: through the gates, or by the word of a person."""

from infra import database
from registry import versions
from registry.errors import StateError
from registry.records import Gate, ModelVersion, Request, Verdict
from registry.sections import TaskType
from registry.stream import Stream
from registry.versions import CHALLENGER, CHAMPION
from tasks.alias_moves import mirror_aliases, move_alias
from tasks.approvals import with_word
from tasks.events import GATE_REFUSED, announce
from tasks.narration import say
from tasks.policies.approval import asks_person
from tasks.policies.promotion import loss_is_chance, version_clears_gates
from tasks.retries import step
from tasks.row_by_row import compare_rows


@step("promote-{version.version}")
def promote_version(stream: Stream, version: ModelVersion) -> Verdict:
    """Make the version champion when every gate passes; otherwise it waits as challenger."""
    with database.transaction() as session:
        champion = versions.alias_of(session, stream.name, CHAMPION)
        candidate = _accuracies(versions.accuracies(session, stream.name, version.version))
        held = _accuracies(versions.accuracies(session, stream.name, champion)) if champion is not None else {}
    if champion == version.version:
        mirror_aliases(stream.name)  # a crash may have left MLflow behind
        return Verdict(True, "it is the champion")
    gates = stream.gates
    verdict = version_clears_gates(candidate, held, gates.accuracy_drop, gates.forgetting)
    if champion is not None and not verdict.passed and stream.task != TaskType.LANGUAGE:
        changes = compare_rows(stream, version.version, champion)
        second = loss_is_chance(changes, held, gates.accuracy_drop, gates.forgetting)
        verdict = Verdict(second.passed, f"{verdict.reason}; {second.reason}")
    if asks_person(gates.approval.promotion, not verdict.passed):
        verdict = with_word(stream, Gate.PROMOTION, f"{stream.name}/{version.version}", verdict)
    if not verdict.passed:
        refused = {"gate": "promotion", "what": f"{stream.name}/{version.version}", "reason": verdict.reason}
        announce(GATE_REFUSED, stream.name, "gate", f"promotion.{stream.name}.{version.version}", **refused)
    alias = CHAMPION if verdict.passed else CHALLENGER
    move_alias(stream.name, alias, version.version, "deciduous", verdict.reason)
    say(f"  version {version.version} is {alias}: {verdict.reason}")
    return verdict


@step("promote-{request.what}")
def promote_approved(request: Request) -> None:
    """Make the version champion in the approver's name, if it still is the challenger."""
    stream, _, version = request.what.partition("/")
    with database.transaction() as session:
        challenger = versions.alias_of(session, stream, CHALLENGER)
    if challenger != int(version):
        now = f"{stream}/{challenger} is" if challenger else "none is"
        raise StateError(f"version {request.what} is challenger no more, {now}; nothing was moved")
    move_alias(stream, CHAMPION, int(version), request.approver, f"approved: {request.note or request.reason}")
    say(f"  version {version} is champion: approved by {request.approver}")


def _accuracies(cells: dict[str, tuple[float, float, int]]) -> dict[str, tuple[float, int]]:
    return {batch: (accuracy, rows) for batch, (accuracy, _, rows) in cells.items()}
