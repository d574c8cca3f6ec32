import pytest

from flows.learn import learn
from infra import database
from registry import adapters, contents, ownership
from tasks.opening import open_home
from tests.flows.conftest import deliver, make_stream


def learned_digests(stream) -> dict[str, str]:
    """Every artifact of the stream that comes out of its rows, by owner and kind."""
    learn(stream)
    with database.transaction() as session:
        owners = [a.node for a in adapters.adapters(session, stream.name)]
        owners += [s.node for s in contents.done_shards(session, stream.name)]
        found = ownership.objects_of(session, owners)
    # rows and the names of checkpoints hold keyed hashes, and every home has a key of its own
    return {f"{o.owner}/{o.kind}": o.sha256 for o in found if o.kind != "rows" and not o.kind.startswith("checkpoint")}


@pytest.mark.usefixtures("ready")
def test_two_homes_learn_the_same_bytes(backbone, inbox, set_variable, tmp_path_factory):
    stream = make_stream("same-bytes", backbone, inbox)
    deliver(inbox, "01", ["red", "blue"])
    deliver(inbox, "02", ["green", "gold"])
    here = learned_digests(stream)
    set_variable("HOME", tmp_path_factory.mktemp("other-home"))
    open_home()
    there = learned_digests(stream)
    assert len(here) == 10
    by_kind = [sorted(sha for name, sha in digests.items()) for digests in (here, there)]
    assert by_kind[0] == by_kind[1]
