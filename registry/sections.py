"""Sections of the stream file, and the words that their fields take."""

import re
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator


def _in_order(schema: dict[str, Any]) -> None:
    """Prefect's form sorts fields by `position`; without one, as its database likes."""
    for position, field in enumerate(schema.get("properties", {}).values()):
        field["position"] = position


def _five_fields(cron: str, info: ValidationInfo) -> str:
    if len(cron.split()) != 5:
        raise ValueError("a cron expression has five fields, for example '0 * * * *'")
    if info.context == WRITTEN and _never_fires(cron):
        raise ValueError("it never fires: its months have no such day; name a day that comes")
    return cron


def _never_fires(cron: str) -> bool:
    """Of two months in a row one has 31 days, so that a range of months has every day."""
    _, _, days, months, weekdays = cron.lower().split()
    first = [re.match(r"\d+", part) for part in days.split(",")]
    longest = max(_SHORT.get(month.lstrip("0"), 31) for month in months.split(","))
    return weekdays in ("*", "?") and all(day is not None and int(day[0]) > longest for day in first)


WRITTEN = "written"
"""Context in which a file is read: what an earlier release stored has to stay readable."""
MOST = 1_000_000
_SHORT = {"2": 29, "feb": 29} | dict.fromkeys(("4", "apr", "6", "jun", "9", "sep", "11", "nov"), 30)
Cron = Annotated[str, AfterValidator(_five_fields)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", json_schema_extra=_in_order)

    @field_validator("*", mode="before")
    @classmethod
    def _no_word_for_a_number(cls, value: object, info: ValidationInfo) -> object:
        """Pydantic would take yes for 1, which is a rank, a budget and a gate."""
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError(
                "a bare yes, no, on or off is true or false in YAML; give a number, or put the word in quotes"
            )
        return value

    @field_validator("*")
    @classmethod
    def _of_use(cls, value: object, info: ValidationInfo) -> object:
        """Beyond it lie infinity, which no JSON holds, times after the last year, and more than a database counts."""
        if info.context == WRITTEN and isinstance(value, int | float) and value > MOST:
            raise ValueError(f"no field has a use for more than {MOST:,}")
        return value


class TaskType(StrEnum):
    TEXT = "text-classification"
    IMAGE = "image-classification"
    LANGUAGE = "causal-lm"


class Composition(StrEnum):
    RETRIEVE = "retrieve"
    MIX = "mix"


class Approval(StrEnum):
    NEVER = "never"
    ALWAYS = "always"
    ON_REGRESSION = "on-regression"


class OnTimeout(StrEnum):
    REFUSE = "refuse"
    APPROVE = "approve"


class Runner(StrEnum):
    THREAD = "thread"
    DASK = "dask"
    RAY = "ray"


class WithoutWorker(StrEnum):
    LOCAL = "local"
    WAIT = "wait"


class Columns(Section):
    """Which column of the source holds what."""

    id: str = Field("id", description="unique id of a record")
    subject: str | None = Field(
        None, description="person or thing the record belongs to; without it a record is its own subject"
    )
    group: str | None = Field(None, description="access label; without it every record is in the group 'default'")
    input: str = Field("text", description="the text, or the image file's bytes; never a path")
    label: str | None = Field("label", description="the class; null for a stream without labels")
    time: str | None = Field(None, description="when the record was made; kept with the record")


class AdapterOptions(Section):
    method: Literal["bottleneck", "lora"] = Field(
        "bottleneck", description="lora where the task is causal-lm, bottleneck elsewhere; the task chooses"
    )
    rank: int = Field(16, ge=1, le=1024)
    last_layers: int | None = Field(
        None, ge=1, description="adapters sit in this many of the last blocks; two thirds of the depth where absent"
    )
    epochs: int = Field(3, ge=1, le=1000)
    learning_rate: float = Field(5e-3, gt=0)
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="sgd has momentum 0.9 and asks for its own rate")
    slices: int = Field(
        2, ge=1, le=64, description="checkpoints per shard: a deletion retrains from the last clean one"
    )
    precision: Literal["fp32", "bf16", "int8", "1bit"] = Field(
        "fp32", description="how weights are stored and serve; where gates.form_drop refuses, the next larger one"
    )

    ranks: Literal["fixed", "nested"] = Field(
        "fixed",
        description="nested trains every smaller rank as well and stores the smallest that gates.form_drop allows",
    )
    prune: Literal["none", "magnitude", "snip"] = Field(
        "none", description="leaves out the least salient trained weights of every factor, where gates.form_drop allows"
    )
    sparsity: float = Field(0.4, gt=0, lt=1, description="share of the weights that prune leaves out")

    @model_validator(mode="after")
    def _smaller_for_it(self) -> "AdapterOptions":
        if self.prune != "none" and self.precision == "1bit":
            raise ValueError(
                "prune with precision 1bit would be larger than 1bit alone: a kept sign is one bit, and so is every "
                "place's mark; use int8, bf16 or fp32"
            )
        return self

    @property
    def chooses_form(self) -> bool:
        """Whether an adapter may be stored smaller than it was trained."""
        return self.precision != "fp32" or self.ranks == "nested" or self.prune != "none"


NEWER = ("optimizer", "precision", "ranks", "prune", "sparsity")
"""Adapter options that came after the first streams."""


class ShiftOptions(Section):
    test: str = Field("sema+mmd", pattern="^sema[+]mmd$")
    alpha: float = Field(0.01, gt=0, lt=1, description="share of batches without shift that may expand all the same")
    permutations: int = Field(999, ge=99)
    min_rows: int = Field(40, ge=4, description="a shifted batch with fewer rows to learn from is held")
    new_classes: Literal["reuse", "expand"] = Field("reuse", description="what classes that no adapter has met ask for")


class MixOptions(Section):
    """When and where the mixture of a `composition: mix` stream grows; all of it shapes the artifacts."""

    threshold: float = Field(
        1.0,
        gt=0,
        description="mean z-score of a batch's held-out rows above which a block grows: SEMA's expansion rule",
    )
    two_sided: bool = Field(False, description="rows that are reconstructed better than usual count as shift as well")
    watched: int = Field(3, ge=1, description="so many of the last blocks have descriptors and may grow")


class Completion(Section):
    """How a causal-lm stream answers; it shapes no artifact."""

    top_k: int = Field(1, ge=1, le=8, description="adapters that share an answer, the likeliest first")
    new_tokens: int = Field(32, ge=1, le=512, description="longest completion")
    far: float | None = Field(
        None,
        gt=0,
        description="a prompt further than this from every adapter's documents, which lie at 1 on average themselves, "
        "is left to the backbone; null: the nearest adapter answers",
    )


class CacheOptions(Section):
    """How the frozen prefix's hidden states are kept on local disk."""

    dtype: Literal["float32", "bfloat16", "int8"] = Field(
        "float32", description="float32 is exact; the others take a half or a quarter of the disk and round"
    )
    policy: Literal["auto", "always", "never"] = Field(
        "auto", description="auto compares the disk with the device and logs which won"
    )


class Approvals(Section):
    """Which gates ask a person, and what happens when nobody answers."""

    promotion: Approval = Field(Approval.NEVER, description="a version that would become champion")
    merge: Approval = Field(Approval.NEVER, description="a merge that would be kept")
    erasure: Approval = Field(Approval.NEVER, description="a deletion ticket, before anything of it is destroyed")
    hours: float = Field(72, gt=0, description="time to answer")
    on_timeout: OnTimeout = Field(OnTimeout.REFUSE, description="what silence means")


class Gates(Section):
    accuracy_drop: float = Field(
        0.01, ge=0, le=1, description="largest loss on all held-out rows against the champion; one row passes"
    )
    forgetting: float = Field(
        0.02, ge=0, le=1, description="largest mean loss on earlier batches against the champion; one row passes"
    )
    merge_drop: float = Field(0.02, ge=0, le=1, description="largest loss on any parent's held-out rows after a merge")
    refresh_drop: float = Field(0.05, ge=0, le=1, description="shortfall of a reused adapter that makes it train again")
    form_drop: float = Field(
        0.01, ge=0, le=1, description="largest loss of an adapter on its own held-out rows by storing it smaller"
    )
    approval: Approvals = Field(Approvals(), description="one word for every gate, or a word for each")

    @field_validator("approval", mode="before")
    @classmethod
    def _one_for_all(cls, value: object) -> object:
        return dict.fromkeys(("promotion", "merge", "erasure"), value) if isinstance(value, str) else value


class Consolidation(Section):
    operator: Literal["cat", "linear", "ties", "dare_ties", "ema", "ot", "svd"] = Field(
        "cat", description="cat is exact and adds up ranks; the others keep the rank, and the gate says at what loss"
    )
    max_adapters: int | None = Field(
        16, ge=1, description="serving adapters of one group; above it the closest are merged after a batch"
    )
    window: int = Field(20, ge=1, description="batches over which it is counted who is routed to")
    retire_share: float = Field(
        0.01, ge=0, lt=1, description="an adapter that took part in less of the window's answers retires; 0 never"
    )


class Deletion(Section):
    due_days: int = Field(30, ge=1)
    guarantee: str = Field("E0", pattern="^E0$")

    @model_validator(mode="before")
    @classmethod
    def _one_setting_asks(cls, fields: Any) -> Any:
        """Catalogs hold `approval: false` from when there were two settings for one question."""
        if isinstance(fields, dict) and "approval" in fields:
            if fields["approval"]:
                raise ValueError("deletion.approval is no field any more; write gates: {approval: {erasure: always}}")
            return {name: value for name, value in fields.items() if name != "approval"}
        return fields


class TaskOptions(Section):
    """Where steps run; none of it shapes an artifact, but for `processes`, which an adapter's own recipe keeps."""

    runner: Runner = Field(Runner.THREAD, description="what trains several adapters at once; dask and ray are extras")
    workers: int = Field(1, ge=1, le=64, description="adapters that the thread runner trains at once")
    processes: int = Field(
        1,
        ge=1,
        le=64,
        description="processes, one a GPU, that train one adapter together; more than 1 round otherwise, so a deletion "
        "trains such an adapter again from its first slice, in one process",
    )
    pool: str | None = Field("gpu", description="work pool that trains for a deployed stream; null trains in place")
    without_worker: WithoutWorker = Field(
        WithoutWorker.LOCAL, description="where the pool has no live worker: train in place, or wait for one"
    )
    wait_minutes: float = Field(120, gt=0, description="how long a suspended run waits for its training")


class Scoring(Section):
    """What a deployed stream answers by itself; it shapes no artifact."""

    source: str = Field(description="objects of inputs, named like a stream's source")
    out: str = Field(description="folder, or s3:// address, for a Parquet file of answers per object")
    groups: tuple[str, ...] = Field((), description="groups whose adapters answer; needed where there are several")
    caller: str | None = Field(None, description="who asks, where grants are kept: a name, since Prefect shows it")
    schedule: Cron | None = Field(None, description="cron expression; without it on demand")
