"""Who may use what: grants are read again in time, strangers get nothing, and the log names the grants."""

import hashlib

import pytest

from infra.errors import SettingsError
from registry.errors import StateError
from tasks.entitlement import OPEN, Entitlements, permitted

SECRET = "s3cr3t"
GRANTS = "mail:\n  ann: [sales]\n  sha256:{digest}: [sales, support]\n"


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def file(tmp_path, set_variable):
    path = tmp_path / "grants.yaml"
    path.write_text(GRANTS.format(digest=hashlib.sha256(SECRET.encode()).hexdigest()))
    set_variable("ENTITLEMENTS", path)
    return path


def test_without_a_file_whoever_asks_says_what_they_hold():
    assert Entitlements().of("mail", None, ["a"]) == Entitlements().of("mail", "anyone", ["a"])
    assert Entitlements().of("mail", None, ["a"]).snapshot == OPEN


@pytest.mark.parametrize("asked", [["a"], ["*"], []])
def test_where_the_catalog_is_on_a_server_nobody_is_answered_without_grants(set_variable, asked, file):
    set_variable("DATABASE_URL", "postgresql+psycopg://u:p@h/d")
    set_variable("ENTITLEMENTS", "")
    with pytest.raises(StateError, match="no grants are kept here, so nobody is answered"):
        Entitlements().of("mail", "ann", asked)
    set_variable("REQUIRE_ENTITLEMENTS", "false")
    assert Entitlements().of("mail", "ann", asked).snapshot == OPEN
    set_variable("REQUIRE_ENTITLEMENTS", "")
    set_variable("ENTITLEMENTS", file)
    assert Entitlements().of("mail", "ann", []).groups == ("sales",)


def test_grants_may_be_required_of_an_embedded_home_too(set_variable):
    set_variable("REQUIRE_ENTITLEMENTS", "true")
    with pytest.raises(StateError, match="DECIDUOUS_ENTITLEMENTS"):
        Entitlements().of("mail", None, ["*"])


def test_a_caller_gets_what_was_granted_never_more(file):
    grants = Entitlements()
    assert grants.of("mail", "ann", []).groups == ("sales",)
    assert grants.of("mail", "ann", ["*"]).groups == ("sales",)
    assert grants.of("mail", SECRET, ["support", "board"]).groups == ("support",)
    assert grants.of("mail", "ann", []).snapshot == hashlib.sha256(file.read_bytes()).hexdigest()[:16]


@pytest.mark.parametrize("caller", [None, "", "bob", f"sha256:{hashlib.sha256(SECRET.encode()).hexdigest()}"])
@pytest.mark.usefixtures("file")
def test_strangers_and_a_digest_in_place_of_its_secret_get_nothing(caller):
    with pytest.raises(StateError, match="holds none of the groups"):
        Entitlements().of("mail", caller, [])


@pytest.mark.usefixtures("file")
def test_a_secret_is_refused_where_prefect_would_show_it():
    Entitlements().refuse_secret("mail", "ann")
    Entitlements().refuse_secret("mail", None)
    with pytest.raises(StateError, match="is known by a secret") as refused:
        Entitlements().refuse_secret("mail", SECRET)
    assert SECRET not in str(refused.value)


@pytest.mark.usefixtures("file")
def test_groups_and_streams_that_were_not_granted_are_denied():
    for stream, asked in (("mail", ["support"]), ("other", [])):
        with pytest.raises(StateError):
            Entitlements().of(stream, "ann", asked)


def test_a_revocation_takes_effect_within_a_minute_however_warm_the_process_is(file):
    clock = Clock()
    grants = Entitlements(clock)
    before = grants.of("mail", SECRET, [])
    file.write_text("mail:\n  ann: [sales]\n")
    assert grants.of("mail", SECRET, []) == before
    clock.now = 60.0
    with pytest.raises(StateError):
        grants.of("mail", SECRET, [])
    assert grants.of("mail", "ann", []).snapshot != before.snapshot


def test_no_setting_makes_a_revocation_later_than_a_minute(set_variable):
    set_variable("ENTITLEMENT_SECONDS", 61)
    with pytest.raises(SettingsError, match="ENTITLEMENT_SECONDS"):
        Entitlements().of("mail", "ann", [])


def test_when_grants_cannot_be_read_nobody_is_answered(file):
    clock = Clock()
    grants = Entitlements(clock)
    grants.of("mail", "ann", [])
    file.unlink()
    clock.now = 60.0
    for _ in range(2):
        with pytest.raises(StateError, match="nobody is answered"):
            grants.of("mail", "ann", [])


@pytest.mark.parametrize("written", ["ann: ab", "ann: {a: 1}", "ann: [1, a]", "ann: [no]", "ann: 5", "[ann]", "7: [a]"])
def test_a_file_that_grants_something_else_than_lists_of_groups_answers_nobody(file, written):
    """`ann: ab` in place of `ann: [ab]` would grant the groups a and b."""
    file.write_text(f"mail:\n  {written}\n")
    with pytest.raises(StateError, match=r"those of stream 'mail'.* are not of the form .*; nobody is answered"):
        Entitlements().of("mail", "ann", [])
    file.write_text("- mail")
    with pytest.raises(StateError, match=r"streams are not of the form .*; nobody is answered"):
        Entitlements().of("mail", "ann", [])


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("mail:\n  bob: [a]\n  s3cr3t: a\n", r"those of stream 'mail' \(entry 2 of 2\) are not"),
        ("mail:\n  bob: [a]\n  yes: [a]\n", r"those of stream 'mail' \(entry 2 of 2\) are not"),
        ("7:\n", "those of stream 7 are not"),
        ("mail:\n  s3cr3t: [a\n", "cannot be read: ParserError in line 3;"),
        ("mail:\n  s3cr3t: [2026-02-30]\n", "cannot be read: ValueError;"),
    ],
)
def test_the_odd_entry_is_told_by_its_place_and_no_caller_by_name(file, written, told):
    file.write_text(written)
    with pytest.raises(StateError, match=told) as refused:
        Entitlements().of("mail", "ann", [])
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("written", ["mail:\n", "mail:\n  ann:\n", ""])
def test_nothing_is_granted_by_a_name_with_nothing_behind_it(file, written):
    file.write_text(written)
    with pytest.raises(StateError, match="holds none of the groups"):
        Entitlements().of("mail", "ann", [])


def test_only_known_groups_are_permitted():
    assert permitted({"a", "b"}, ["b", "unknown"]) == ("b",)
    with pytest.raises(StateError, match=r"asked for: none; .* name one that has data \(`--as GROUP`"):
        permitted({"a", "b"}, [])
