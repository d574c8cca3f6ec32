"""The stream file: what a user tunes, as one model that is also the flows' parameter."""

import json
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

from pydantic import BaseModel, Field, ValidationError, ValidationInfo, model_validator

from registry.errors import StreamFileError
from registry.sections import (
    NEWER,
    WRITTEN,
    AdapterOptions,
    CacheOptions,
    Columns,
    Completion,
    Composition,
    Consolidation,
    Cron,
    Deletion,
    Gates,
    MixOptions,
    Scoring,
    Section,
    ShiftOptions,
    TaskOptions,
    TaskType,
)

WHOLE = (
    "a mixture answers as a whole: its adapters and router columns were fitted beside each other, so none of them is "
    "merged or retired by itself"
)


class Stream(Section):
    """One stream: where its batches come from and how its model is kept current."""

    name: str = Field(pattern=r"^[a-z][a-z0-9-]{0,62}$", description="lower-case letters, digits and dashes")
    task: TaskType = TaskType.TEXT
    backbone: str = Field(
        description="a Hugging Face id, a folder, or package:NAME for a model inside a Python package"
    )
    source: str = Field(
        min_length=1, description="s3://bucket/prefix/*.parquet, or a local path or pattern; every object is a batch"
    )
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

    @model_validator(mode="after")
    def _can_expand(self, info: ValidationInfo) -> "Stream":
        """The least p-value is that of the one true order among all; what an earlier release stored stays readable."""
        least = 1 / (self.shift.permutations + 1)
        if info.context == WRITTEN and self.composition == Composition.RETRIEVE and self.shift.alpha < least:
            raise ValueError(
                f"shift.alpha is {self.shift.alpha:g}, and of {self.shift.permutations} permutations no p-value is "
                f"below {least:g}: no batch could ever expand; raise shift.permutations or shift.alpha"
            )
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
    def shaping(self) -> dict[str, Any]:
        """Every field that shapes an artifact, by the name that a stream file gives it."""
        whole, sections = {"task", "backbone", "max_tokens", "composition"}, ("adapter", "mix")
        found = self.model_dump(mode="json", include={*whole, *sections})
        inner = {f"{name}.{field}": value for name in sections for field, value in found.pop(name).items()}
        form = {"gates.form_drop": self.gates.form_drop} if self.adapter.chooses_form else {}
        return {**found, **inner, "cache.dtype": self.cache.dtype, **form}

    @property
    def naming(self) -> dict[str, str]:
        """The columns that say which record a row is, and whose."""
        return {"columns.id": self.columns.id, "columns.subject": self.columns.subject or self.columns.id}

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
    if isinstance(section, BaseModel):
        return section.model_dump(exclude_unset=True)
    if isinstance(section, dict | None):
        return section or {}
    raise ValueError(f"a section holds fields, like {{rank: 16}}, not {section!r}")


def load_stream(path: Path) -> Stream:
    """Read a stream file. Raises StreamFileError naming the field, the value and what is expected."""
    import yaml  # noqa: PLC0415  a verb that names a stream reads no file

    try:
        with path.open(encoding="utf-8") as file:
            fields = _read_yaml(file)
    except FileNotFoundError:
        raise StreamFileError(f"no stream file {path}; `deciduous init {path}` writes one to edit") from None
    except OSError as error:
        raise StreamFileError(
            f"stream file {path} cannot be read: {error.strerror}; name the YAML file itself"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise StreamFileError(f"stream file {path} is not YAML: {error}") from None
    if not isinstance(fields, dict):
        raise StreamFileError(f"stream file {path} holds no fields; `deciduous init` writes one to edit")
    try:
        return Stream.model_validate(fields, context=WRITTEN)
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, e['loc']))}: {e['msg']} (got {e['input']!r})" for e in error.errors()]
        raise StreamFileError(f"stream file {path} has fields to correct:\n" + "\n".join(lines)) from None


def _read_yaml(file: IO[str]) -> Any:
    """YAML itself would take the last of two fields of one name, and say nothing."""
    import yaml  # noqa: PLC0415

    class Loader(yaml.SafeLoader):
        def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
            node = super().compose_mapping_node(anchor)
            seen = set[str]()
            for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
                if key.value in seen:
                    line = key.start_mark.line + 1
                    raise StreamFileError(f"stream file {file.name} has {key.value!r} again in line {line}; keep one")
                seen.add(key.value)
            return node

    return Loader(file).get_single_data()
