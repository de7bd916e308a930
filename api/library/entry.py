"""What the library knows about an index or graph: its state, its version, its size."""

from __future__ import annotations

import time
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from api.library.errors import LibraryError

FILE = "entry.json"
PROGRESS = "progress.json"


class State(StrEnum):
    """Where an item stands; one that was built before can be searched in every state."""

    BUILDING = "building"
    READY = "ready"
    FAILED = "failed"


class Problem(BaseModel):
    """Why a build failed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    code: str
    message: str


class Progress(BaseModel):
    """How far a build is: documents read or passages embedded, of how many."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stage: str
    done: int = Field(ge=0)
    total: int | None = None


class Entry(BaseModel):
    """An index or graph of a tenant; times are seconds since the epoch, `bytes` those on disk.

    `version` counts what was published; it is null until the first build is done. `counts` are
    documents and passages, or triples, entities and relations, of that version. `restartable`
    says that a failed build can be started again with what was uploaded, `reserved` how many
    documents or facts a build may add.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    kind: str
    state: State = State.BUILDING
    version: int | None = None
    counts: dict[str, int] = {}
    bytes: int = 0
    created_at: float = Field(default_factory=time.time)
    updated_at: float = Field(default_factory=time.time)
    error: Problem | None = None
    progress: Progress | None = None
    restartable: bool = False
    reserved: int = Field(default=0, exclude_if=lambda value: value == 0)

    def but(self, **changes: Any) -> Entry:
        """The same with changes, as of now."""
        return self.model_copy(update={"updated_at": time.time(), **changes})

    @property
    def documents(self) -> int:
        """What counts against the quota: what there is, and what is being added."""
        return self.reserved + self.counts.get("documents", self.counts.get("triples", 0))


def read_entry(folder: Path) -> Entry | None:
    """The entry of an item's folder, None if there is none; raises LibraryError for a bad one."""
    file = folder / FILE
    try:
        return Entry.model_validate_json(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValidationError, OSError) as error:
        raise LibraryError(f"{file}: damaged ({type(error).__name__}); delete the item") from None


def write(file: Path, model: BaseModel) -> None:
    """Write a file of the library so that a reader sees the old one or the whole new one."""
    beside = file.with_name(f".{file.name}.new")
    beside.write_text(model.model_dump_json(), encoding="utf-8")
    beside.replace(file)


def read_progress(folder: Path) -> Progress | None:
    """How far a build is, None if it has not said so."""
    try:
        return Progress.model_validate_json((folder / PROGRESS).read_bytes())
    except (OSError, ValidationError):
        return None
