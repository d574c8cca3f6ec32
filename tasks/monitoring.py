"""Monitors of a deletion: does what serves afterwards tell the forgotten records from strangers?

They can fail a ticket and never pass one: equal bytes say more, and few records say nothing. The reference of RMIA is
the backbone's own exact head, solved without the records. Counts and areas leave this file, no score of a record.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from sqlalchemy.orm import Session
from torch import Tensor

from infra import database
from registry import contents, tickets
from registry.records import Shard, Ticket, TicketState
from registry.stream import Stream
from tasks.assembly import current_manifest, load_model
from tasks.backbones import open_backbone, open_language
from tasks.held_back import HeldBack, hold_back, load_held, rows_to_hold, strangers
from tasks.learning.composition import ServingModel, compose, predict
from tasks.learning.language.serving import Entitled, LanguageModel
from tasks.learning.language.training import Documents
from tasks.learning.membership import Membership, compare_members, log_likelihood, pool, privacy_leak, rmia_ratios
from tasks.narration import say
from tasks.policies.guarantee import hear_monitor
from tasks.release import clean_part
from tasks.retries import step
from tasks.saga import Detail, once

MONITOR = "monitor"
Likelihoods = tuple[Tensor, Tensor]
"""(N,) log likelihoods under the model, and under its exact head alone."""


def hold_for_monitors(stream: Stream, touched: Sequence[Shard], found: Mapping[str, Sequence[int]]) -> None:
    """Before anything changes: keep the training rows of these tickets (id -> catalog keys), and what is known then."""
    held = {ticket_id: rows_to_hold(stream, touched, keys) for ticket_id, keys in found.items()}
    held = {ticket_id: rows for ticket_id, rows in held.items() if len(rows)}
    if not held:
        return
    model = load_model(current_manifest(stream))
    others = strangers(stream, touched, (key for keys in found.values() for key in keys))
    others_before, _ = likelihoods(stream, model, others, touched)
    for ticket_id, rows in held.items():
        hold_back(ticket_id, rows, likelihoods(stream, model, rows, touched)[0], others_before)


@step("monitor-{together[0].ticket_id}")
def monitor(stream: Stream, together: Sequence[Ticket], resolved: Detail) -> Detail:
    """Membership of each ticket's records in what would serve now, beside what it was; pooled with earlier tickets."""

    def work() -> Detail:
        with database.transaction() as session:
            touched = contents.shards(session, resolved["shards"])
        held = {ticket.ticket_id: load_held(ticket.ticket_id) for ticket in together}
        if not any(len(rows) for rows, _ in held.values()):
            return {"tickets": {}}
        model, others = load_model(clean_part(current_manifest(stream))), strangers(stream, touched)
        now = likelihoods(stream, model, others, touched)
        return {
            "tickets": {
                ticket_id: _measure(rows, likelihoods(stream, model, rows, touched), now, others_before)
                for ticket_id, (rows, others_before) in held.items()
                if len(rows)
            }
        }

    detail = once(together, MONITOR, work)
    for ticket_id, found in detail["tickets"].items():
        rmia = found["rmia"]
        say(f"  monitor {ticket_id}: RMIA AUC {rmia['auc']:.3f} ± {rmia['half_width']:.3f} over {rmia['forgotten']}")
    return detail


def likelihoods(
    stream: Stream, model: ServingModel | LanguageModel, rows: HeldBack, touched: Sequence[Shard]
) -> Likelihoods:
    """As a caller of each row's own group sees them; without a shard that serves the group, nothing is known."""
    groups = {shard.shard_id: shard.group for shard in touched}
    known, alone = torch.zeros(len(rows)), torch.zeros(len(rows))
    served = model.groups if isinstance(model, LanguageModel) else frozenset(model.frozen)
    for group in sorted({groups[shard_id] for shard_id in rows.shard_ids} & served):
        chosen = [n for n, shard_id in enumerate(rows.shard_ids) if groups[shard_id] == group]
        ask = _of_documents if isinstance(model, LanguageModel) else _of_classes
        known[chosen], alone[chosen] = ask(stream, model, group, rows.pick(chosen))
    return known, alone


def _of_classes(stream: Stream, model: Any, group: str, rows: HeldBack) -> Likelihoods:
    composed = compose(model, {group})
    answers = [predict(open_backbone(stream), which, rows.states) for which in (composed, composed.alone())]
    with_adapters, alone = (log_likelihood(a.scores_NC, rows.labels, composed.labels).float() for a in answers)
    return with_adapters, alone


def _of_documents(stream: Stream, model: Any, group: str, rows: HeldBack) -> Likelihoods:
    """Mean log likelihood of a document's tokens; alone is the frozen backbone, which never saw any."""
    backbone = open_language(stream)
    documents = Documents([backbone.document(each.decode()) for each in rows.inputs], rows.states)
    entitled = Entitled(backbone, model, {group})
    with_adapters, alone = (
        torch.tensor([each.likelihood for each in entitled.score(documents, alone=only)])
        for only in (not entitled.weights, True)
    )
    return with_adapters, alone


def _measure(rows: HeldBack, mine: Likelihoods, others: Likelihoods, others_before: Tensor) -> Detail:
    loss, rmia = _memberships(mine[0], others[0], mine[1], others[1])
    found: Detail = {"loss": asdict(loss), "rmia": asdict(rmia)}
    if len(others_before) == len(others[0]):  # the same strangers, in the same order
        was_loss, was_rmia = _memberships(rows.before, others_before, mine[1], others[1])
        leak = privacy_leak(was_loss.auc, loss.auc)
        found["before"] = {"loss": asdict(was_loss), "rmia": asdict(was_rmia), "privacy_leak_percent": leak}
    return found


def _memberships(mine: Tensor, others: Tensor, reference: Tensor, of_others: Tensor) -> tuple[Membership, Membership]:
    """By likelihood alone, and by RMIA."""
    ratios = rmia_ratios(mine, reference), rmia_ratios(others, of_others)
    return compare_members(mine, others), compare_members(*ratios)


def hear_monitors(session: Session, ticket: Ticket, detail: Detail) -> Detail:
    """The ticket's figures, pooled with those of its stream's complete tickets, and what they raise. Only RMIA speaks:
    a likelihood alone also differs where somebody's records are merely easier. Empty where nothing was measured."""
    found = detail["tickets"].get(ticket.ticket_id)
    if found is None:
        return {}
    mine = Membership(**found["rmia"])
    pooled = pool([*_earlier(session, ticket), mine])
    heard = [hear_monitor(each.auc, each.z, each.forgotten) for each in (mine, pooled)]
    return {**found, "pooled": asdict(pooled), "alarms": [verdict.reason for verdict in heard if not verdict.passed]}


def _earlier(session: Session, ticket: Ticket) -> Iterator[Membership]:
    for each in tickets.tickets(session, ticket.stream, TicketState.COMPLETE):
        noted = tickets.done_step(session, each.lead or each.ticket_id, MONITOR) or {"tickets": {}}
        found = noted["tickets"].get(each.ticket_id)
        if found is not None and each.ticket_id != ticket.ticket_id:
            yield Membership(**found["rmia"])
