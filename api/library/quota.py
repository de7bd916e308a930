"""How much one tenant may keep, and one upload may hold."""

from __future__ import annotations

from dataclasses import dataclass

from workflows.checks.uploaded import MAX_FILES


@dataclass(frozen=True)
class Quota:
    """Limits: of a tenant `items`, `workflows`, `documents` and `bytes`; of an upload the rest.

    `items` and `documents` (of graphs: facts) are counted for each kind by itself. `bytes` are
    those on disk, with the versions that are kept. `characters` is the text that the files of an
    upload may hold once they are read, `pages` those of a PDF, and `seconds` and `memory` (bytes)
    what reading them may take.
    """

    items: int = 100
    workflows: int = MAX_FILES
    documents: int = 200_000
    bytes: int = 4 * 2**30
    files: int = 1_000
    file_bytes: int = 32 * 2**20
    characters: int = 64 * 2**20
    pages: int = 5_000
    seconds: int = 60
    memory: int = 4 * 2**30
