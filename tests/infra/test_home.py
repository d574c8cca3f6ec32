"""What the demo may empty, and what it leaves alone."""

import stat

import pytest

from infra import home as homes
from infra.errors import StartError
from infra.settings import served_file, settings


@pytest.fixture
def home(tmp_path, set_variable):
    set_variable("HOME", tmp_path / "home")
    return tmp_path / "home"


def put(home, *names):
    for name in names:
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text("precious")


@pytest.mark.parametrize("name", ["cache/thesis", "keys/hash.key", "s3/s3.json", "prefect/note", "catalog.db"])
def test_a_folder_that_no_demo_made_is_left_alone(home, name):
    put(home, name)
    with pytest.raises(StartError, match="no home of an earlier demo"):
        homes.begin_anew(home)
    assert (home / name).read_text() == "precious"


def test_a_file_is_no_home(home):
    home.write_text("precious")
    with pytest.raises(StartError, match="no home of an earlier demo"):
        homes.begin_anew(home)


@pytest.mark.parametrize("before", [None, "empty", "a demo's", "a demo's from before there was a marker"])
def test_a_demo_begins_in_an_empty_home(home, before):
    if before is not None:
        home.mkdir()
    if before == "a demo's":
        homes.begin_anew(home)
        put(home, "catalog.db", "cache/states/1")
    elif before is not None and before != "empty":
        put(home, *homes.UNMARKED, "cache/states/1")
    homes.begin_anew(home)
    assert {entry.name for entry in home.iterdir()} == {homes.MARKER}
    homes.begin_anew(home)  # and again


def test_the_home_that_a_demo_begins_in_is_closed_to_readers_as_well(home):
    homes.begin_anew(home / "demo")
    assert [stat.S_IMODE(folder.stat().st_mode) for folder in (home, home / "demo")] == [0o711, 0o700]


def test_a_link_in_it_is_removed_and_not_followed(home, tmp_path):
    homes.begin_anew(home)
    put(tmp_path, "elsewhere/kept")
    (home / "link").symlink_to(tmp_path / "elsewhere")
    homes.begin_anew(home)
    assert not (home / "link").is_symlink()
    assert (tmp_path / "elsewhere" / "kept").exists()


def test_the_servers_that_ended_are_not_asked_again(home):
    homes.begin_anew(home)
    served_file(home).write_text("DECIDUOUS_DATABASE_URL='postgresql+psycopg://u:p@127.0.0.1:9/deciduous'\n")
    settings.cache_clear()
    assert settings().database_url.startswith("postgresql")
    homes.begin_anew(home)
    assert settings().database_url == f"sqlite:///{home / 'catalog.db'}"
