"""Killed (-9) before any effect on the world: what serves is whole, and done again, the work ends as if undisturbed."""

import os
import random
import shutil
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client

from infra import seaweed, storage
from infra.settings import settings
from registry import artifacts
from tests.faults import scenarios
from tests.faults.crashing import Warm
from tests.faults.scenarios import SCENARIOS, Scenario
from tests.flows.conftest import backbone, ready

__all__ = ["backbone", "ready"]

SAMPLE, MORE = 1, 6
"""Boundaries of a scenario that `make test` tries (of `forget`), and `make test-faults`; CRASHES=all tries all."""
SEED = int(os.environ.get("CRASH_SEED", "0"))
"""Chooses the boundaries: another one tries others, the same one the same."""
TRIED = [("forget", SAMPLE)] + [pytest.param(name, MORE, marks=pytest.mark.faults) for name in SCENARIOS]


@dataclass
class Stage:
    """A home, two buckets and their content as they were before the work; `reset` brings them back."""

    environment: dict[str, str]
    folder: Path
    prepared: Path
    kept: dict[tuple[str, str], tuple[str, bytes]] = field(default_factory=dict)
    """(bucket, key) -> version id and bytes."""

    def keep(self) -> None:
        shutil.copytree(self.folder / "home", self.prepared, symlinks=True)
        for bucket in self.buckets:
            for version in artifacts.list_versions(storage.s3(), bucket):
                data = storage.s3().get_object(Bucket=bucket, Key=version.key, VersionId=version.version_id)
                assert (bucket, version.key) not in self.kept
                self.kept[bucket, version.key] = (version.version_id, data["Body"].read())

    def reset(self) -> None:
        shutil.rmtree(self.folder / "home")
        shutil.copytree(self.prepared, self.folder / "home", symlinks=True)
        s3 = storage.s3()
        for bucket in self.buckets:
            artifacts.abort_uploads(s3, bucket, artifacts.list_uploads(s3, bucket))
            there = artifacts.list_versions(s3, bucket)
            here = {(bucket, v.key) for v in there if self.kept.get((bucket, v.key), ("",))[0] == v.version_id}
            wrong = [v for v in there if (bucket, v.key) not in here or self.kept[bucket, v.key][0] != v.version_id]
            for start in range(0, len(wrong), 1000):
                objects = [{"Key": v.key, "VersionId": v.version_id} for v in wrong[start : start + 1000]]
                s3.delete_objects(Bucket=bucket, Delete={"Objects": objects, "Quiet": True})
            for (where, key), (_, data) in list(self.kept.items()):
                if where == bucket and (bucket, key) not in here:
                    put = s3.put_object(Bucket=bucket, Key=key, Body=data)
                    self.kept[bucket, key] = (put["VersionId"], data)

    @property
    def buckets(self) -> tuple[str, str]:
        return self.environment["DECIDUOUS_ARTIFACT_BUCKET"], self.environment["DECIDUOUS_INBOX_BUCKET"]


@pytest.fixture(scope="module")
def warm(backbone):
    process = Warm(str(backbone))
    yield process
    process.close()


@pytest.fixture(scope="module")
def api(prefect_api):  # noqa: ARG001
    """Address of the session's Prefect API, which its first client starts."""
    with get_client(sync_client=True) as client:
        client.api_healthcheck()
        return str(client.api_url)


@pytest.fixture
def stage(s3, api, tmp_path):
    access, secret = seaweed.credentials(settings().home)
    environment = {
        "PREFECT_API_URL": api,
        "DECIDUOUS_HOME": str(tmp_path / "home"),
        "DECIDUOUS_S3_ENDPOINT": s3.meta.endpoint_url,
        "DECIDUOUS_S3_ACCESS_KEY": access,
        "DECIDUOUS_S3_SECRET_KEY": secret,
        "DECIDUOUS_ARTIFACT_BUCKET": f"crash-{uuid.uuid4().hex[:12]}",
        "DECIDUOUS_INBOX_BUCKET": f"inbox-{uuid.uuid4().hex[:12]}",
        "DECIDUOUS_THREADS": "1",
    }
    made = Stage(environment, tmp_path, tmp_path / "prepared")
    for name in made.buckets:
        s3.create_bucket(Bucket=name)
        s3.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    return made


def chosen(effects: list[str], count: int, seed: int = SEED) -> list[int]:
    """Numbers of the effects to die before; one more than there are is a run that is only repeated."""
    every = range(1, len(effects) + 2)
    if os.environ.get("CRASHES") == "all" and count == MORE:
        return list(every)
    return sorted(random.Random(f"{seed} {len(effects)}").sample(every, count))


def test_a_seed_chooses_the_same_boundaries_again_and_another_one_others(monkeypatch):
    monkeypatch.delenv("CRASHES", raising=False)
    effects = [str(number) for number in range(200)]
    first = chosen(effects, MORE)
    assert chosen(effects, MORE) == first
    assert len(first) == MORE
    assert chosen(effects, MORE, SEED + 1) != first


def differing(here: Any, undisturbed: Any, where: str = "") -> dict[str, Any]:
    """Path -> (here, in the undisturbed run), of the smallest parts that differ."""
    if isinstance(here, dict) and isinstance(undisturbed, dict):
        pairs = [(key, here.get(key), undisturbed.get(key)) for key in sorted({*here, *undisturbed})]
    elif isinstance(here, list) and isinstance(undisturbed, list) and len(here) == len(undisturbed):
        pairs = [(n, *both) for n, both in enumerate(zip(here, undisturbed, strict=True))]
    else:
        return {} if here == undisturbed else {where: (here, undisturbed)}
    return {path: both for key, *each in pairs for path, both in differing(*each, f"{where}/{key}").items()}


@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("name", "count"), TRIED)
def test_killed_anywhere_and_repeated_it_ends_as_if_undisturbed(warm, stage, backbone, ends, name, count):
    scenario: Scenario = SCENARIOS[name]
    job = (str(backbone), stage.folder)
    warm.call(scenario.prepare, *job, **stage.environment)
    stage.keep()
    before = warm.call(scenarios.served, frozenset(), **stage.environment)
    effects = warm.watch(scenario.work, *job, **stage.environment)
    assert {"S3 PutObject", "commit catalog", "commit mlflow"} <= {each.partition(": ")[2] for each in effects}
    undisturbed = warm.call(scenarios.left_behind, **stage.environment)
    after = warm.call(scenarios.served, frozenset(), **stage.environment)

    wrong = {}
    numbers = chosen(effects, count)
    print(f"CRASH_SEED={SEED}: {name} dies before {numbers} of {len(effects)} effects")
    for last in numbers:
        stage.reset()
        label = f"{last}: {[*effects, 'nothing'][last - 1]}"
        assert (warm.watch(scenario.work, *job, last=last, **stage.environment) is None) == (last <= len(effects))
        champion, _ = warm.call(scenarios.served, frozenset({*before, *after} - {None}), **stage.environment)
        assert champion in (before[0], after[0]) or name == "forget", label
        warm.call(scenario.again, *job, **stage.environment)
        if found := differing(warm.call(scenarios.left_behind, **stage.environment), undisturbed):
            wrong[label] = found
    assert not wrong
    if count == MORE:
        ends(
            f"`{name}` is killed (-9)",
            f"before {sum(n <= len(effects) for n in numbers)} of its {len(effects)} effects, then repeated",
            "a whole champion in between; then the state of an undisturbed run",
            "none: artifacts by digest, versions, aliases, log and certificate are the same",
        )
