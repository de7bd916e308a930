"""Named indexes or graphs of tenants: created, extended, listed, opened, deleted.

Every change publishes a version: a folder that is never written again. A run holds the folder of
the version that it was submitted with; the newest `KEPT` versions stay, so that runs which were
queued before a change still find theirs. Deleting takes all versions away: what has a file open
goes on with it, and what has not is refused from then on.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from api.library import upload
from api.library.entry import (
    FILE,
    PROGRESS,
    Entry,
    Problem,
    Progress,
    State,
    read_entry,
    read_progress,
    write,
)
from api.library.errors import (
    Busy,
    LibraryError,
    LibraryInputError,
    NameTaken,
    NotReady,
    QuotaExceeded,
    StorageFull,
    UnknownItem,
)
from api.library.kinds import Kind
from api.library.locks import Locks
from api.library.opened import Opened
from api.library.places import NAME, Places, check_name, size_of
from api.library.quota import Quota
from api.library.upload import Given
from inference.errors import InferenceError
from retrieval.errors import RetrievalError, RetrievalInputError
from retrieval.retriever import Retriever

KEPT = 3
"""Versions that stay, the newest."""
LOCK_SECONDS = 10.0
"""How long a change waits for another one of the same item."""
TELL_SECONDS = 0.5
PENDING, VERSIONS, STAGED = "pending", "versions", "next"

Fill = Callable[[Path], int | None]
"""Puts an upload into its folder; documents or facts that need no reading, else None."""


class Stopped(Exception):
    """The service ends while it builds; the build can be restarted."""


class Shelf:
    """All tenants' items of one kind; safe to use from several threads and processes."""

    def __init__(
        self, places: Places, kind: Kind, quota: Quota, locks: Locks, workers: ThreadPoolExecutor
    ) -> None:
        self.places, self.kind, self.quota = places, kind, quota
        self._locks, self._workers = locks, workers
        self._stop = threading.Event()
        self._opened = Opened()

    def list(self, tenant: str) -> list[Entry]:
        """The tenant's items by name."""
        folder = self.places.shelf(tenant, self.kind.name)
        names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        found = (self._look(tenant, name) for name in names if NAME.fullmatch(name))
        return [entry for entry in found if entry is not None]

    def get(self, tenant: str, name: str) -> Entry:
        """One item; raises UnknownItem."""
        entry = self._look(tenant, name)
        if entry is None:
            raise self._unknown(name)
        return entry

    def folder(self, tenant: str, name: str) -> Path:
        """The folder of the current version; raises UnknownItem, NotReady."""
        entry = self.get(tenant, name)
        if entry.version is None:
            hint = "wait for it" if entry.state == State.BUILDING else "restart or delete it"
            raise NotReady(f"the {self.kind.name} {name!r} is {entry.state.value}; {hint}")
        return self._version(tenant, name, entry.version)

    def files(
        self, tenant: str, name: str, files: Sequence[Given], *, extend: bool, wait: float
    ) -> Entry:
        """Create an item from files, or add files to it; see `change`."""

        def fill(folder: Path) -> None:
            room = self.quota.bytes - self._used(tenant)[1]
            upload.keep(files, folder, self.kind.formats(), self.quota, room)

        return self.change(tenant, name, fill, extend=extend, wait=wait)

    def rows(
        self, tenant: str, name: str, rows: Iterable[Any], *, extend: bool, wait: float
    ) -> Entry:
        """The same from rows as the reader of files writes them, which must be checked."""
        given = list(rows)

        def fill(folder: Path) -> int:
            upload.keep_rows(given, folder)
            return len(given)

        return self.change(tenant, name, fill, extend=extend, wait=wait)

    def change(self, tenant: str, name: str, fill: Fill, *, extend: bool, wait: float) -> Entry:
        """Take an upload in, read it, and build from it; the entry after at most `wait` seconds.

        What the upload itself has wrong is raised, and then nothing has changed. The build goes on
        in the background; where it ends within `wait`, what it has wrong is raised too.
        """
        with self._holding(tenant, name) as keep:
            entry = self._begin(tenant, name, extend=extend)
            folder = self.places.item(tenant, self.kind.name, name)
            pending = folder / PENDING
            fresh = not folder.exists()
            try:
                upload.clear(pending)
                with self._disk(name):
                    pending.mkdir(parents=True)
                    items = fill(pending)
                    if items is None:
                        items = upload.parse(self.kind.name, pending, self.quota).items
                    self._enter(tenant, folder, entry.but(reserved=items))
            except BaseException:
                upload.clear(folder if fresh else pending)
                raise
            done = self._start(tenant, name, entry, extend=extend)
            keep()
        return self._await(tenant, name, done, wait)

    def restart(self, tenant: str, name: str, wait: float) -> Entry:
        """Build again from what was uploaded, after a build that failed or was cut off."""
        with self._holding(tenant, name) as keep:
            entry = self.get_quietly(tenant, name)
            folder = self.places.item(tenant, self.kind.name, name)
            if entry.state == State.READY or not (folder / PENDING / upload.PARSED).is_file():
                raise LibraryInputError(
                    f"the {self.kind.name} {name!r} is {entry.state.value} and has nothing to "
                    "build from; upload the files again"
                )
            entry = entry.but(state=State.BUILDING, error=None, restartable=False)
            with self._disk(name):
                write(folder / FILE, entry)
            done = self._start(tenant, name, entry, extend=entry.version is not None)
            keep()
        return self._await(tenant, name, done, wait)

    def delete(self, tenant: str, name: str) -> None:
        """Take an item and all its versions away; raises UnknownItem, Busy."""
        with self._holding(tenant, name):
            if read_entry(self.places.item(tenant, self.kind.name, name)) is None:
                raise self._unknown(name)
            trash = self.places.trash(tenant)
            folder = self.places.item(tenant, self.kind.name, name)
            with self._disk(name):
                trash.mkdir(exist_ok=True)
                folder.rename(trash / f"{self.kind.name}.{name}.{time.time_ns()}")
        self._opened.drop(folder)
        for gone in trash.iterdir():
            upload.clear(gone)

    def open(
        self, tenant: str, name: str, retriever: str | None = None, **options: Any
    ) -> Retriever:
        """A retriever over the current version, kept open for the next search."""
        folder = self.folder(tenant, name)

        def opener() -> Retriever:
            return self.kind.open(folder, retriever, options)

        try:
            return self._opened.get((folder, repr((retriever, sorted(options.items())))), opener)
        except RetrievalInputError:
            if folder.exists():
                raise
            raise self._unknown(name) from None

    def close(self) -> None:
        """Stop builds at the next passage they have done; they can be restarted."""
        self._stop.set()

    def used(self, tenant: str) -> tuple[int, int, int]:
        """Items, documents (or facts) and bytes of a tenant, of this kind."""
        entries = self.list(tenant)
        folder = self.places.shelf(tenant, self.kind.name)
        return len(entries), sum(entry.documents for entry in entries), size_of(folder)

    def get_quietly(self, tenant: str, name: str) -> Entry:
        """The entry as it was written; for who holds the lock. Raises UnknownItem."""
        entry = read_entry(self.places.item(tenant, self.kind.name, name))
        if entry is None:
            raise self._unknown(name)
        return entry

    def _begin(self, tenant: str, name: str, *, extend: bool) -> Entry:
        entry = read_entry(self.places.item(tenant, self.kind.name, name))
        if extend:
            if entry is None:
                raise self._unknown(name)
            if entry.version is None:
                raise NotReady(f"the {self.kind.name} {name!r} was never built; restart it first")
            return entry.but(state=State.BUILDING, error=None, restartable=False)
        if entry is not None and entry.version is not None:
            raise NameTaken(
                f"the {self.kind.name} {name!r} exists already; add to it, or delete it first"
            )
        count = len(self.list(tenant))
        if entry is None and count >= self.quota.items:
            raise QuotaExceeded(
                f"{count} items of the kind {self.kind.name}, {self.quota.items} are allowed; "
                "delete one"
            )
        return Entry(name=name, kind=self.kind.name)

    def _start(self, tenant: str, name: str, entry: Entry, *, extend: bool) -> Future[Entry]:
        (self.places.item(tenant, self.kind.name, name) / PROGRESS).unlink(missing_ok=True)
        file = self.places.lock(tenant, self.kind.name, name)

        def cancelled(done: Future[Entry]) -> None:
            if done.cancelled():
                self._locks.give(file)

        try:
            done = self._workers.submit(self._build, tenant, name, entry, extend)
        except RuntimeError:
            message = "the service is stopping; restart the build when it is back"
            raise LibraryError(message) from None
        done.add_done_callback(cancelled)
        return done

    def _await(self, tenant: str, name: str, done: Future[Entry], wait: float) -> Entry:
        try:
            return done.result(timeout=wait)
        except (NotYet, CancelledError, Stopped):
            return self.get(tenant, name)

    def _build(self, tenant: str, name: str, entry: Entry, extend: bool) -> Entry:
        """Build the next version, publish it, let go of the lock. Runs in a worker."""
        folder = self.places.item(tenant, self.kind.name, name)
        try:
            return self._publish(tenant, folder, entry, extend)
        except BaseException as error:
            self._failed(folder, entry, error)
            if isinstance(error, OSError):
                raise _full(error, name) from error
            raise
        finally:
            self._locks.give(self.places.lock(tenant, self.kind.name, name))

    def _publish(self, tenant: str, folder: Path, entry: Entry, extend: bool) -> Entry:
        versions = folder / VERSIONS
        versions.mkdir(exist_ok=True)
        number = (entry.version or 0) + 1
        for left in versions.iterdir():  # of a build that was cut off behind its commit
            if left.name.isdecimal() and int(left.name) >= number:
                upload.clear(left)
        out = versions / STAGED
        upload.clear(out)
        if extend and entry.version is not None:
            shutil.copytree(versions / str(entry.version), out, copy_function=os.link)
        self.kind.build(folder / PENDING, out, extend=extend, tell=self._teller(folder))
        counts = self.kind.counts(out)
        out.rename(versions / str(number))
        for old in versions.iterdir():
            if old.name.isdecimal() and int(old.name) <= number - KEPT:
                upload.clear(old)
        ready = entry.but(
            state=State.READY,
            version=number,
            counts=counts,
            bytes=size_of(versions),
            reserved=0,
        )
        write(folder / FILE, ready)  # the commit
        upload.clear(folder / PENDING)
        return ready

    def _failed(self, folder: Path, entry: Entry, error: BaseException) -> None:
        """Write down why; where even that fails, the entry is read as interrupted."""
        if isinstance(error, Stopped):
            return
        expected = isinstance(error, RetrievalError | InferenceError | LibraryError)
        code = str(getattr(error, "code", "build_failed")) if expected else "build_failed"
        message = str(error).replace(str(folder), entry.name) if expected else type(error).__name__
        problem = Problem(code=code, message=message[:2_000])
        try:
            upload.clear(folder / VERSIONS / STAGED)
            write(folder / FILE, entry.but(state=State.FAILED, error=problem, restartable=True))
        except OSError:
            return

    def _teller(self, folder: Path) -> Callable[[str, int, int | None], None]:
        last = 0.0

        def tell(stage: str, done: int, total: int | None) -> None:
            nonlocal last
            if self._stop.is_set():
                raise Stopped
            if time.monotonic() - last >= TELL_SECONDS:
                last = time.monotonic()
                write(folder / PROGRESS, Progress(stage=stage, done=done, total=total))

        return tell

    def _look(self, tenant: str, name: str) -> Entry | None:
        """An entry as it stands now: one whose builder is gone was interrupted."""
        folder = self.places.item(tenant, self.kind.name, name)
        entry = read_entry(folder)
        if entry is None or entry.state != State.BUILDING:
            return entry
        if self._locks.held(self.places.lock(tenant, self.kind.name, name)):
            return entry.model_copy(update={"progress": read_progress(folder)})
        entry = read_entry(folder)
        if entry is None or entry.state != State.BUILDING:
            return entry
        problem = Problem(
            code="interrupted",
            message=f"the service stopped while it built the {entry.kind}; restart the build",
        )
        parsed = (folder / PENDING / upload.PARSED).is_file()
        return entry.model_copy(
            update={"state": State.FAILED, "error": problem, "restartable": parsed}
        )

    def _enter(self, tenant: str, folder: Path, entry: Entry) -> None:
        """Write an entry that is to be built, if the tenant has room for what it reserves."""
        lock = self.places.quota_lock(tenant)
        if not self._locks.take(lock, LOCK_SECONDS):
            raise Busy("other uploads are being counted; try again")
        try:
            self._require_room(tenant, entry.reserved, size_of(folder / PENDING))
            write(folder / FILE, entry)
        finally:
            self._locks.give(lock)

    def _require_room(self, tenant: str, documents: int, more: int) -> None:
        """Raise QuotaExceeded if a tenant would keep too much with this upload."""
        kept, size = self._used(tenant)
        if kept + documents > self.quota.documents:
            raise QuotaExceeded(
                f"{documents} more documents or facts than the {kept} there are, "
                f"{self.quota.documents} are allowed; delete some"
            )
        if size > self.quota.bytes:
            raise QuotaExceeded(
                f"{more} more bytes would make {size}, {self.quota.bytes} are allowed; delete "
                "something"
            )

    def _used(self, tenant: str) -> tuple[int, int]:
        _, documents, _ = self.used(tenant)
        return documents, size_of(self.places.tenant(tenant))

    def _version(self, tenant: str, name: str, number: int) -> Path:
        return self.places.item(tenant, self.kind.name, name) / VERSIONS / str(number)

    @contextmanager
    def _holding(self, tenant: str, name: str) -> Iterator[Callable[[], None]]:
        """Hold an item's lock; the block may call what it is given to keep it afterwards."""
        file = self.places.lock(tenant, self.kind.name, check_name(name, self.kind.name))
        if not self._locks.take(file, LOCK_SECONDS):
            raise Busy(f"the {self.kind.name} {name!r} is being built; wait until it is ready")
        kept = False

        def keep() -> None:
            nonlocal kept
            kept = True

        try:
            yield keep
        finally:
            if not kept:
                self._locks.give(file)

    @contextmanager
    def _disk(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise _full(error, name) from error

    def _unknown(self, name: str) -> UnknownItem:
        return UnknownItem(f"no {self.kind.name} {name!r}; the list of them has all names")


def _full(error: OSError, name: str) -> LibraryError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return StorageFull(f"{name}: the disk is full; what was there before is unchanged")
    return LibraryError(f"{name}: {error.strerror or error}; what was there before is unchanged")
