"""The stream file: what a user tunes, as one model that is also the flows' parameter."""

import json
from enum import StrEnum
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from registry.errors import StreamFileError


def _in_order(schema: dict[str, Any]) -> None:
    """Prefect's form sorts fields by `position`; without one, as its database likes."""
    for position, field in enumerate(schema.get("properties", {}).values()):
        field["position"] = position


def _five_fields(cron: str) -> str:
    if len(cron.split()) != 5:
        raise ValueError("a cron expression has five fields, for example '0 * * * *'")
    return cron


Cron = Annotated[str, AfterValidator(_five_fields)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", json_schema_extra=_in_order)


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


class Columns(_Section):
    """Which column of the source holds what."""

    id: str = Field("id", description="unique id of a record")
    subject: str | None = Field(
        None, description="person or thing the record belongs to; without it a record is its own subject"
    )
    group: str | None = Field(None, description="access label; without it every record is in the group 'default'")
    input: str = Field("text", description="the text, or the image file's bytes; never a path")
    label: str | None = Field("label", description="the class; null for a stream without labels")
    time: str | None = Field(None, description="when the record was made; kept with the record")


class AdapterOptions(_Section):
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


class ShiftOptions(_Section):
    test: str = Field("sema+mmd", pattern="^sema[+]mmd$")
    alpha: float = Field(0.01, gt=0, lt=1, description="share of batches without shift that may expand all the same")
    permutations: int = Field(999, ge=99)
    min_rows: int = Field(40, ge=4, description="a shifted batch with fewer labelled rows is held for a person")
    new_classes: Literal["reuse", "expand"] = Field("reuse", description="what classes that no adapter has met ask for")


class MixOptions(_Section):
    """When and where the mixture of a `composition: mix` stream grows; all of it shapes the artifacts."""

    threshold: float = Field(
        1.0,
        gt=0,
        description="mean z-score of a batch's held-out rows above which a block grows: SEMA's expansion rule",
    )
    two_sided: bool = Field(False, description="rows that are reconstructed better than usual count as shift as well")
    watched: int = Field(3, ge=1, description="so many of the last blocks have descriptors and may grow")


class Completion(_Section):
    """How a causal-lm stream answers; it shapes no artifact."""

    top_k: int = Field(1, ge=1, le=8, description="adapters that share an answer, the likeliest first")
    new_tokens: int = Field(32, ge=1, le=512, description="longest completion")
    far: float | None = Field(
        None,
        gt=0,
        description="a prompt further than this from every adapter's documents, which lie at 1 on average themselves, "
        "is left to the backbone; null: the nearest adapter answers",
    )


class CacheOptions(_Section):
    """How the frozen prefix's hidden states are kept on local disk."""

    dtype: Literal["float32", "bfloat16", "int8"] = Field(
        "float32", description="float32 is exact; the others take a half or a quarter of the disk and round"
    )
    policy: Literal["auto", "always", "never"] = Field(
        "auto", description="auto compares the disk with the device and logs which won"
    )


class Approvals(_Section):
    """Which gates ask a person, and what happens when nobody answers."""

    promotion: Approval = Field(Approval.NEVER, description="a version that would become champion")
    merge: Approval = Field(Approval.NEVER, description="a merge that would be kept")
    erasure: Approval = Field(Approval.NEVER, description="a deletion ticket, before anything of it is destroyed")
    hours: float = Field(72, gt=0, description="time to answer")
    on_timeout: OnTimeout = Field(OnTimeout.REFUSE, description="what silence means")


class Gates(_Section):
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


class Consolidation(_Section):
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


WHOLE = (
    "a mixture answers as a whole: its adapters and router columns were fitted beside each other, so none of them is "
    "merged or retired by itself"
)


class Deletion(_Section):
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


class TaskOptions(_Section):
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


class Scoring(_Section):
    """What a deployed stream answers by itself; it shapes no artifact."""

    source: str = Field(description="objects of inputs, named like a stream's source")
    out: str = Field(description="folder, or s3:// address, for a Parquet file of answers per object")
    groups: tuple[str, ...] = Field((), description="groups whose adapters answer; needed where there are several")
    caller: str | None = Field(None, description="who asks, where grants are kept: a name, since Prefect shows it")
    schedule: Cron | None = Field(None, description="cron expression; without it on demand")


class Stream(_Section):
    """One stream: where its batches come from and how its model is kept current."""

    name: str = Field(pattern=r"^[a-z][a-z0-9-]{0,62}$", description="lower-case letters, digits and dashes")
    task: TaskType = TaskType.TEXT
    backbone: str = Field(
        description="a Hugging Face id, a folder, or package:NAME for a model inside a Python package"
    )
    source: str = Field(description="s3://bucket/prefix/*.parquet, or a local path or pattern; every object is a batch")
    columns: Columns = Columns()
    schedule: Cron | None = Field(None, description="cron expression for `deciduous deploy`")
    scoring: Scoring | None = Field(None, description="inputs that `predict-batch` answers for `deciduous deploy`")
    max_tokens: int = Field(
        64, ge=8, le=512, description="texts are cut here; documents of a causal-lm stream are packed to it"
    )
    adapter: AdapterOptions = AdapterOptions()
    shift: ShiftOptions = ShiftOptions()
    composition: Composition = Field(
        Composition.RETRIEVE,
        description="retrieve: an adapter never depends on another shard; mix: one growing mixture per group",
    )
    mix: MixOptions = MixOptions()
    gates: Gates = Gates()
    completion: Completion = Completion()
    cache: CacheOptions = CacheOptions()
    consolidation: Consolidation = Consolidation()
    merge_across: tuple[tuple[str, ...], ...] = Field(
        (), description="lists of groups whose adapters may merge; only callers who hold all of them use the result"
    )
    deletion: Deletion = Deletion()
    tasks: TaskOptions = TaskOptions()
    owner: str | None = Field(None, description="who answers for the stream; shown on its deployments")
    docs: str | None = Field(None, description="address of the stream's documentation; shown on its deployments")

    @model_validator(mode="before")
    @classmethod
    def _what_the_task_asks_for(cls, fields: Any) -> Any:
        """Documents have no label, and are learned by LoRA; a mixture trains by SGD, as published. Said here, once, so
        that no step has to ask."""
        if isinstance(fields, dict) and fields.get("composition") == Composition.MIX:
            fields = {**fields, "adapter": {"optimizer": "sgd", **_fields_set(fields.get("adapter"))}}
        if not isinstance(fields, dict) or fields.get("task") != TaskType.LANGUAGE:
            return fields
        columns, adapter = (_fields_set(fields.get(name)) for name in ("columns", "adapter"))
        adapter = {"method": "lora", "learning_rate": 1e-3, **adapter}
        return {**fields, "columns": {**columns, "label": columns.get("label")}, "adapter": adapter}

    @model_validator(mode="after")
    def _fits_the_task(self) -> "Stream":
        documents = self.task == TaskType.LANGUAGE
        if documents and self.columns.label is not None:
            raise ValueError(f"columns.label is {self.columns.label!r}, documents of a causal-lm stream have none")
        if documents != (self.adapter.method == "lora"):
            raise ValueError(f"adapter.method is {self.adapter.method!r}: causal-lm takes lora, the others bottleneck")
        if documents and self.tasks.processes > 1:
            raise ValueError(f"tasks.processes is {self.tasks.processes}: documents are trained by one process")
        if documents and self.adapter.chooses_form:
            raise ValueError(
                "adapter.precision is fp32, ranks are fixed and nothing is pruned for causal-lm: PEFT reads the stored "
                "factors"
            )
        return self

    @model_validator(mode="after")
    def _fits_the_composition(self) -> "Stream":
        if self.composition == Composition.RETRIEVE:
            if self.mix != MixOptions():
                raise ValueError("mix holds options of `composition: mix`; this stream retrieves")
            return self
        refused = {
            "task": (self.task == TaskType.LANGUAGE, "documents are learned by adapters of their own, see retrieve"),
            "adapter.optimizer": (self.adapter.optimizer != "sgd", "a mixture trains by sgd, as published"),
            "adapter.precision, ranks and prune": (
                self.adapter.chooses_form,
                "a mixture is stored as it was trained, in fp32",
            ),
            "tasks.processes": (self.tasks.processes > 1, "a mixture is trained by one process"),
            "merge_across": (bool(self.merge_across), "nothing of a mixture is pooled across groups"),
            "consolidation": (self.consolidation != Consolidation(), WHOLE),
        }
        for field, (odd, why) in refused.items():
            if odd:
                raise ValueError(f"{field} does not go with composition: mix: {why}")
        return self

    @property
    def consolidates(self) -> bool:
        """Whether its adapters may be merged and retired one by one."""
        return self.task != TaskType.LANGUAGE and self.composition == Composition.RETRIEVE

    @property
    def answers(self) -> str:
        """What an answer is called."""
        return "completion" if self.task == TaskType.LANGUAGE else "label"

    @property
    def recipe_digest(self) -> str:
        """Digest of everything that shapes an artifact; two streams with the same digest train the same bytes."""
        shaping = self.model_dump(
            mode="json", include={"name", "task", "backbone", "max_tokens", "adapter", "composition"}
        )
        for option in NEWER:  # a stream that leaves it alone keeps its digest
            if shaping["adapter"][option] == AdapterOptions.model_fields[option].default:
                del shaping["adapter"][option]
        if self.composition == Composition.MIX:
            shaping["mix"] = self.mix.model_dump(mode="json")
        if self.adapter.chooses_form:
            shaping["form_drop"] = self.gates.form_drop
        if self.cache.dtype != "float32":
            shaping["states"] = self.cache.dtype
        return sha256(json.dumps(shaping, sort_keys=True).encode()).hexdigest()


def _fields_set(section: Any) -> dict[str, Any]:
    """What a file or a caller wrote of a section."""
    return section.model_dump(exclude_unset=True) if isinstance(section, BaseModel) else dict(section or {})


def load_stream(path: Path) -> Stream:
    """Read a stream file. Raises StreamFileError naming the field, the value and what is expected."""
    import yaml  # noqa: PLC0415  a verb that names a stream reads no file

    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StreamFileError(f"no stream file {path}; `deciduous init {path}` writes one to edit") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise StreamFileError(f"stream file {path} is not YAML: {error}") from None
    if not isinstance(fields, dict):
        raise StreamFileError(f"stream file {path} holds no fields; `deciduous init` writes one to edit")
    try:
        return Stream.model_validate(fields)
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, e['loc']))}: {e['msg']} (got {e['input']!r})" for e in error.errors()]
        raise StreamFileError(f"stream file {path} has fields to correct:\n" + "\n".join(lines)) from None
