"""The catalog of models as data: one entry for each model, and the snapshot that contains all entries.

Entries are facts from github.com/vllm-project/recipes (Apache-2.0), without its texts. `stackgen.catalog.recipes` reads
them. A snapshot has a hash over its models, so that a damaged or edited file is noticed.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from stackgen.errors import StackgenError

__all__ = [
    "MAX_BYTES", "SCHEMA", "Entry", "Hardware", "Snapshot", "Variant", "hash_models", "parse_snapshot",
    "snapshot_text",
]  # fmt: skip

SCHEMA: Literal[1] = 1
# the snapshot of 2026-08-21 has 160 kB
MAX_BYTES = 4 * 2**20

Repository = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,95}$")]
Word = Annotated[str, StringConstraints(pattern=r"^[\w.+/-]{1,80}$")]
Version = Annotated[str, StringConstraints(pattern=r"^\d{1,3}(\.\d{1,4}){1,3}$")]
Date = Annotated[str, StringConstraints(pattern=r"^20\d\d-[01]\d-[0-3]\d$")]
Count = Annotated[str, StringConstraints(pattern=r"^\d{1,5}(\.\d{1,4})?[MBT]$")]
# printable: a line of a terminal must not contain what moves its cursor
Argument = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]{0,1000}$")]
Title = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]{1,60}$")]
VariableName = Annotated[str, StringConstraints(pattern=r"^[A-Z][A-Z0-9_]{0,80}$")]
Arguments = Annotated[tuple[Argument, ...], Field(max_length=60)]
Environment = Annotated[dict[VariableName, Argument], Field(max_length=30)]
Words = Annotated[tuple[Word, ...], Field(max_length=60)]


class Frozen(BaseModel):
    """Base of the data: frozen, and unknown fields are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class Hardware(Frozen):
    """A machine that recipes name. `vram_gb`: decimal GB of all its GPUs together."""

    name: Title
    vendor: Word
    gpus: Annotated[int, Field(ge=1, le=1024)]
    vram_gb: Annotated[int, Field(ge=1, le=1_000_000)]


class Variant(Frozen):
    """One checkpoint of a model.

    - `vram_gb`: the recipe's figure for the memory of all GPUs together, in decimal GB: weights and 20 %, without the
      context. `gpus`: the tensor parallel size that the recipe sets, or None.
    - `args`: flags of vLLM for this checkpoint, after those of the model. `hardware`: the only hardware that the recipe
      names for it.
    """

    name: Word
    model: Repository
    precision: Word
    vram_gb: Annotated[int, Field(ge=0, le=1_000_000)]
    first_version: Version | None = None
    gpus: Annotated[int, Field(ge=1, le=1024)] | None = None
    args: Arguments = ()
    env: Environment = {}
    hardware: Words = ()


class Entry(Frozen):
    """One model. Fields that the recipe does not have are None or empty.

    - `parameters`, `active`: as `480B`. `context`: tokens. `first_version`: the oldest vLLM that runs the model.
    - `tool_call_parser`, `reasoning_parser`: names that vLLM knows. `chat_template`: a file of vLLM's repository that
      tool calls need; without it, the model's own template is used.
    - `args`: flags of vLLM for every checkpoint. `verified`, `unsupported`: keys of `Snapshot.hardware`.
    - `omni`: the recipe starts vllm-omni, which is another server. `nightly`: no release ran the model when the recipe
      was written. `updated`: when the recipe changed.
    """

    model: Repository
    provider: Title
    tasks: Words
    architecture: Word
    parameters: Count | None = None
    active: Count | None = None
    context: Annotated[int, Field(ge=1, le=10**9)] | None = None
    first_version: Version | None = None
    nightly: bool = False
    omni: bool = False
    updated: Date
    tool_call_parser: Word | None = None
    reasoning_parser: Word | None = None
    chat_template: Word | None = None
    args: Arguments = ()
    env: Environment = {}
    verified: Words = ()
    unsupported: Words = ()
    variants: Annotated[tuple[Variant, ...], Field(min_length=1, max_length=40)]


class Snapshot(Frozen):
    """All models at one commit of the recipes, which is None if a copy does not show it.

    `updated`: when the newest recipe changed. `sha256`: see `hash_models`.
    """

    format: Literal[1] = Field(SCHEMA, alias="schema")
    source: Word
    license: Word
    commit: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")] | None = None
    updated: Date
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    hardware: Annotated[dict[Word, Hardware], Field(max_length=200)]
    models: Annotated[tuple[Entry, ...], Field(min_length=1, max_length=5000)]

    def to_json(self) -> dict[str, Any]:
        """The data without empty fields, as the file has it."""
        data = self.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        return {"schema": self.format, **data}


def hash_models(data: dict[str, Any]) -> str:
    """SHA-256 over `hardware` and `models` of a snapshot, as JSON with sorted keys and without spaces."""
    content = {"hardware": data.get("hardware"), "models": data.get("models")}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def snapshot_text(snapshot: Snapshot) -> str:
    """The text of the file: a line for each field, so that a diff shows what changed."""
    return json.dumps(snapshot.to_json(), indent=1, ensure_ascii=False) + "\n"


def parse_snapshot(data: bytes, source: str) -> Snapshot:
    """The snapshot in `data`, with its schema, its sizes and its hash checked. Raises StackgenError."""
    hint = "`scripts/catalog` of stackgen writes such a file from a checkout of vllm-project/recipes"
    if len(data) > MAX_BYTES:
        raise StackgenError(f"{source} is larger than {MAX_BYTES // 2**20} MiB, which is too large for a catalog", hint)
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise StackgenError(f"{source} is not JSON: {str(error)[:200]}", hint) from None
    if not isinstance(raw, dict) or "models" not in raw:
        raise StackgenError(f"{source} is not a catalog: it has no `models`", hint)
    if raw.get("schema") != SCHEMA:
        given = str(raw.get("schema"))[:20]
        raise StackgenError(f"{source} has the schema {given!r}, but this stackgen reads {SCHEMA}",
                            "use the stackgen that wrote the file")  # fmt: skip
    try:
        snapshot = Snapshot.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])[:120]
        raise StackgenError(f"{source}: {place}: {first['msg'][:200]}", hint) from None
    if hash_models(raw) != snapshot.sha256:
        raise StackgenError(f"{source}: the hash of the models differs from the hash in the file",
                            "the file was damaged or edited: copy it again from its source")  # fmt: skip
    return snapshot
