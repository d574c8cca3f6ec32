"""Markers of a ticket that was an exception before its records were told apart are still looked for."""

import json

from infra.files import write_private
from tasks.markers import Marked, escrow, load_marked, load_markers


def test_markers_that_were_kept_as_a_list_are_read(home):  # noqa: ARG001
    write_private(escrow("t-old"), json.dumps([b"hash".hex(), b"state".hex()]).encode())
    assert load_markers("t-old") == [b"hash", b"state"]
    write_private(escrow("t-new"), json.dumps([{"record": b"hash".hex(), "head": b"text".hex()}]).encode())
    assert load_marked("t-new") == [Marked(record=b"hash", head=b"text")]
    assert load_markers("t-new") == [b"hash"]
    for ticket_id in ("t-old", "t-new"):
        escrow(ticket_id).unlink()
