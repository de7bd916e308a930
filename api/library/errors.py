"""Errors of the library; each names the value, the place and the remedy."""

from __future__ import annotations

from collections.abc import Sequence

from workflows.errors import WorkflowError, WorkflowInputError


class LibraryError(WorkflowError):
    """The library could not be read or written."""

    code = "library_error"


class StorageFull(LibraryError):
    """There is no space left on the disk; what was there before is unchanged."""

    code = "storage_full"


class LibraryInputError(LibraryError, WorkflowInputError):
    """A name, a file or a request that cannot be used; nothing was changed."""

    code = "bad_input"


class UnknownItem(LibraryInputError):
    """The tenant has nothing of this name."""

    code = "not_found"


class NameTaken(LibraryInputError):
    """The tenant has something of this name already."""

    code = "name_taken"


class Busy(LibraryInputError):
    """Somebody is changing it at this moment."""

    code = "busy"


class NotReady(LibraryInputError):
    """It has not been built yet, or its first build failed."""

    code = "not_ready"


class QuotaExceeded(LibraryInputError):
    """More than a tenant may keep."""

    code = "quota_exceeded"


class BadUpload(LibraryInputError):
    """Files that cannot be read, with what is wrong with each, as `place: fault; remedy` lines."""

    code = "bad_upload"
    shown = 10

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = tuple(faults)
        more = len(self.faults) - self.shown
        listed = " | ".join(self.faults[: self.shown])
        super().__init__(f"{listed} | and {more} more" if more > 0 else listed)
