"""The cache of hidden states on disk: what it holds, what it costs, and that a purge reaches its records only."""

import shutil
import sys
from dataclasses import replace
from io import BytesIO
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

from infra import database
from infra.settings import settings
from registry.sections import AdapterOptions, CacheOptions, TaskType
from registry.stream import Stream
from tasks import prefix_cache
from tasks.backbones import open_backbone
from tasks.rows import Row
from tests.flows.conftest import backbone  # noqa: F401  a fixture

TEXTS = ["a b c", "d e f g h i j k", "l", "m n o p q r s t u v w x y z"]


def rows_of(count):
    return [
        Row(f"{n:02x}{n:06x}", "s", "g", "l", TEXTS[n % 4].encode() + b" a" * (n % 3), None, False, 0)
        for n in range(count)
    ]


@pytest.fixture
def stream(backbone, request):  # noqa: F811
    database.migrate()
    name = request.node.name.split("[")[0].replace("_", "-")[:60]
    fields = {"name": name, "backbone": str(backbone), "source": "x", "adapter": AdapterOptions(last_layers=2)}
    return Stream(**fields, max_tokens=16)


def of(stream, **options):
    return stream.model_copy(update={"cache": CacheOptions(**options)})


def entries(stream):
    return [path for path in (settings().home / "cache" / stream.name).rglob("*") if path.is_file()]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_a_warm_cache_gives_what_a_cold_one_and_no_cache_give(stream, dtype):
    rows, kept, never = rows_of(9), of(stream, dtype=dtype), of(stream, dtype=dtype, policy="never")
    plain = prefix_cache.states_of(never, rows)
    assert entries(stream) == []
    cold, warm = prefix_cache.states_of(kept, rows), prefix_cache.states_of(kept, rows)
    work = open_backbone(kept).work.forwards
    prefix_cache.states_of(kept, rows)
    assert open_backbone(kept).work.forwards == work
    for a, b, c in zip(plain, cold, warm, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(b, c)
    prefix_cache.purge(stream.name, [row.record for row in rows])


def test_entries_hold_unpadded_rows(stream):
    rows = rows_of(4)
    prefix_cache.encode_missing(stream, rows)
    tokens = sorted(len(state_TD) for state_TD in prefix_cache.states_of(stream, rows))
    assert sorted(path.stat().st_size // (4 * 32) for path in entries(stream)) == tokens
    assert len(set(tokens)) > 1


def test_room_is_made_by_what_was_used_longest_ago_and_it_comes_back(stream, set_variable):
    shutil.rmtree(settings().home / "cache", ignore_errors=True)
    rows = rows_of(12)
    before = prefix_cache.states_of(stream, rows)
    limit = sum(path.stat().st_size for path in entries(stream)) // 2
    set_variable("STATE_CACHE_BYTES", limit)
    newest = rows_of(13)[-1:]
    prefix_cache.states_of(stream, newest)
    assert 0 < sum(path.stat().st_size for path in entries(stream)) <= limit
    assert newest[0].record in prefix_cache.records_of(stream.name)
    again = prefix_cache.states_of(stream, rows)
    assert all(torch.equal(a, b) for a, b in zip(before, again, strict=True))


def test_a_record_that_comes_again_with_another_input_gets_the_states_of_that_one(stream):
    (row,) = rows_of(1)
    again = replace(row, input=b"z z z z")
    before = prefix_cache.states_of(stream, [row])[0]
    for _ in range(2):
        assert torch.equal(prefix_cache.states_of(stream, [again])[0], prefix_cache.encode(stream, [again])[0])
    assert torch.equal(prefix_cache.states_of(stream, [row])[0], before)
    assert prefix_cache.records_of(stream.name) == {row.record}
    assert prefix_cache.purge(stream.name, [row.record]) == 2
    assert entries(stream) == []


def test_a_purge_touches_its_records_alone_however_many_there_are(stream):
    """Counted by the interpreter's own audit of file removals and folder listings."""
    seen: list[str] = []
    watching = [False]
    sys.addaudithook(
        lambda event, _: seen.append(event) if watching[0] and event in ("os.remove", "os.scandir") else None
    )

    def cost(total):
        prefix_cache.encode_missing(stream, rows_of(total))
        seen.clear()
        watching[0] = True
        gone = prefix_cache.purge(stream.name, [row.record for row in rows_of(3)])
        watching[0] = False
        return gone, len(seen)

    few, many = cost(6), cost(120)
    assert few == many
    assert few[0] == 3
    assert len(entries(stream)) == 117


def test_a_recipe_that_rounds_has_a_digest_of_its_own(stream):
    digests = {of(stream, dtype=dtype).recipe_digest for dtype in ("float32", "bfloat16", "int8")}
    assert len(digests) == 3
    assert of(stream, policy="never").recipe_digest == stream.recipe_digest


def test_what_is_decided_about_the_states_is_said_once_with_its_reason(stream, caplog, set_variable):
    rows = rows_of(2)
    set_variable("DEVICE_FLOPS", 1e9)
    with caplog.at_level("INFO", logger="deciduous"):
        for _ in range(2):
            prefix_cache.states_of(of(stream, policy="never"), rows)
            prefix_cache.states_of(stream, rows)
    said = [record.getMessage() for record in caplog.records if stream.name in record.getMessage()]
    assert len(said) == 2
    assert "hidden states are not kept, cache.policy is never" in said[0]
    assert "hidden states are kept as float32, reading is faster: 1,000 MB/s of disk against a break-even" in said[1]
    prefix_cache.purge(stream.name, [row.record for row in rows])


def test_an_image_that_no_batch_would_take_in_is_not_answered_and_one_that_was_learned_is_read(stream, monkeypatch):
    """Of 32 bits of grey 8 are read, which would be all white."""
    sink = BytesIO()
    Image.fromarray(np.full((16, 16), 30_000, np.float32)).save(sink, "TIFF")
    images = stream.model_copy(update={"task": TaskType.IMAGE})
    monkeypatch.setattr(prefix_cache, "open_frozen", lambda _: Mock(encode=lambda raw, _: [torch.zeros(1)] * len(raw)))
    monkeypatch.setattr(prefix_cache, "cut_of", lambda *_: 1)
    with pytest.raises(ValueError, match="32 bits a pixel"):
        prefix_cache.encode_inputs(images, [sink.getvalue()])
    assert len(prefix_cache.encode(images, [Row("r", "s", "g", "l", sink.getvalue(), None, False, 0)])) == 1
