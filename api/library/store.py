"""The library of all tenants."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from api.library.errors import LibraryError, LibraryInputError, QuotaExceeded, UnknownItem
from api.library.kinds import Graphs, Indexes
from api.library.locks import Locks
from api.library.places import Places, check_name, library_home
from api.library.quota import Quota
from api.library.shelf import Shelf
from workflows.checks.uploaded import MAIN, check_uploaded
from workflows.loading import Workflow
from workflows.source import MAX_BYTES

SUFFIX = ".yaml"


class Library:
    """Indexes, graphs and workflows by tenant and name; close it, or use it as a context.

    Builds run one after the other in a thread of this process. Methods read and write files: call
    them in a thread where an event loop runs.
    """

    def __init__(self, root: str | Path | None = None, quota: Quota | None = None) -> None:
        self.quota = quota or Quota()
        self._places = Places(Path(root) if root is not None else library_home())
        self._workers = ThreadPoolExecutor(1, thread_name_prefix="library")
        locks = Locks()
        self.indexes = Shelf(self._places, Indexes(), self.quota, locks, self._workers)
        self.graphs = Shelf(self._places, Graphs(), self.quota, locks, self._workers)

    def __enter__(self) -> Library:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop builds, which can be restarted, and let go of everything."""
        self.indexes.close()
        self.graphs.close()
        self._workers.shutdown(wait=True, cancel_futures=True)

    def index(self, tenant: str, name: str) -> Path:
        """The folder of an index as it stands now; it is never written again."""
        return self.indexes.folder(tenant, name)

    def graph(self, tenant: str, name: str) -> Path:
        """The folder of a graph as it stands now; it is never written again."""
        return self.graphs.folder(tenant, name)

    def workflows(self, tenant: str) -> list[str]:
        """Names of the tenant's workflows, sorted."""
        folder = self._places.shelf(tenant, "workflow")
        return sorted(file.stem for file in folder.glob("*.yaml")) if folder.is_dir() else []

    def workflow(self, tenant: str, name: str) -> Path:
        """The file of a workflow; raises UnknownItem."""
        file = self._places.item(tenant, "workflow", name)
        if not file.is_file():
            raise _unknown(name)
        return file

    def check_workflow(self, tenant: str, name: str, text: str) -> Workflow:
        """A workflow that is sent in, beside the tenant's others, which it may call by file name.

        Raises InvalidWorkflow with all its faults, LibraryInputError for a name that cannot be.
        """
        check_name(name, "workflow")
        if f"{name}{SUFFIX}" == MAIN:
            raise LibraryInputError(f"a workflow cannot be called {name!r}; choose another name")
        size = len(text.encode("utf-8", "surrogatepass"))
        if size > MAX_BYTES:
            raise QuotaExceeded(f"the workflow {name!r} has {size} bytes, {MAX_BYTES} are allowed")
        others = {
            other + SUFFIX: self.workflow(tenant, other).read_text(encoding="utf-8")
            for other in self.workflows(tenant)
            if other != name
        }
        return check_uploaded(text, others)

    def add_workflow(self, tenant: str, name: str, text: str) -> Path:
        """Keep a workflow in place of one of this name; raises as `check_workflow` does."""
        self.check_workflow(tenant, name, text)
        file = self._places.item(tenant, "workflow", name)
        content = text.encode("utf-8")
        if not file.is_file() and len(self.workflows(tenant)) >= self.quota.workflows:
            raise QuotaExceeded(f"{self.quota.workflows} workflows are kept already; delete one")
        beside = file.with_name(f".{file.name}.{os.getpid()}")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            beside.write_bytes(content)
            beside.replace(file)
        except OSError as error:
            beside.unlink(missing_ok=True)
            raise LibraryError(
                f"the workflow {name!r} was not kept ({error.strerror}); free space and try again"
            ) from error
        return file

    def remove_workflow(self, tenant: str, name: str) -> None:
        """Delete a workflow; runs that were submitted with it have their own copy."""
        try:
            self._places.item(tenant, "workflow", check_name(name, "workflow")).unlink()
        except FileNotFoundError:
            raise _unknown(name) from None


def _unknown(name: str) -> UnknownItem:
    return UnknownItem(f"no workflow {name!r}; the list of them has all names")
