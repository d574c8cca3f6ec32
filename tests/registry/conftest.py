import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from registry import catalog
from registry.records import Batch, BatchState, Delivery, Shard
from registry.stream import Stream
from registry.tables import Base

STREAM = Stream(name="mail", backbone="b", source="*")


@pytest.fixture
def session():
    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        catalog.save_stream(session, STREAM, "digest")
        yield session
    engine.dispose()


def add_batch(session: Session, name: str, rows: int = 10, groups: tuple[str, ...] = ("g",)) -> Batch:
    shards = tuple(Shard(-1, "", "", group, rows, rows // 5, rows - rows // 5) for group in groups)
    batch = Batch(name, "mail", name, -1, f"x/{name}", BatchState.READ, rows, 0, 0, 0, shards)
    return catalog.add_batch(session, batch, Delivery(f"x/{name}", f"sha-{name}", 1, f"tag-{name}"), {"missing id": 2})
