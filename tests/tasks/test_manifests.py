from registry.records import LABEL_SEPARATOR
from tasks.manifests import seen_by


def test_a_caller_is_answered_from_what_the_groups_they_hold_have_alone():
    groups = ("a", "b", LABEL_SEPARATOR.join("ab"), LABEL_SEPARATOR.join("ac"))
    parts = [{"group": group} for group in groups]
    manifest = {"epoch": 3, "shards": parts[:2], "adapters": parts, "waiting": parts[::-1]}
    assert seen_by(manifest, "ab") == {
        "epoch": 3,
        "shards": parts[:2],
        "adapters": parts[:3],
        "waiting": parts[2::-1],
    }
    assert seen_by(manifest, "c") == {"epoch": 3, "shards": [], "adapters": [], "waiting": []}
