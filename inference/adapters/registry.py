"""The adapters of one engine by name, and the requests that use them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from threading import Lock

from inference.adapters.lora import Adapter
from inference.adapters.shape import Shape
from inference.errors import AdapterInputError, AdapterInUse, UnknownName
from inference.suggest import nearest


class Adapters:
    """Attached adapters under `max_bytes` (None: no limit); every method is safe from any thread.

    A request holds its adapters from `acquire` to `release`, and what is held stays attached.
    """

    def __init__(self, shape: Shape, max_bytes: int | None = None) -> None:
        if max_bytes is not None and max_bytes < 0:
            raise AdapterInputError(f"max_bytes={max_bytes} for adapters must be 0 or more")
        self.shape = shape
        self.max_bytes = max_bytes
        self._attached: dict[str, Adapter] = {}
        self._held: dict[str, tuple[str, ...]] = {}
        self._lock = Lock()

    def attach(self, name: str, source: Adapter | str | Path) -> Adapter:
        """Make an adapter, or the PEFT folder it lies in, known as `name`.

        The same content under the same name again changes nothing. Raises AdapterInputError for
        one that does not fit the model or the limit, or whose name means another one.
        """
        if not name:
            raise AdapterInputError("an adapter is attached under an empty name; give it one")
        if isinstance(source, Adapter):
            adapter = source.renamed(name)
            if adapter.shape != self.shape:
                raise AdapterInputError(
                    f"adapter {name!r} was made for another model, type or device; "
                    "make it with the shape of this engine"
                )
        else:
            adapter = Adapter.from_peft(source, self.shape, name)
        adapter.digest  # noqa: B018  # takes long, so before the lock
        with self._lock:
            known = self._attached.get(name)
            if known is not None:
                if known.digest == adapter.digest:
                    return known
                raise AdapterInputError(
                    f"another adapter is attached as {name!r}; detach it first, or use another name"
                )
            used = sum(one.bytes for one in self._attached.values())
            if self.max_bytes is not None and used + adapter.bytes > self.max_bytes:
                raise AdapterInputError(
                    f"adapter {name!r} takes {adapter.bytes} bytes, and {self.max_bytes - used} "
                    f"of {self.max_bytes} are left; detach another one first"
                )
            self._attached[name] = adapter
        return adapter

    def detach(self, name: str) -> None:
        """Forget an adapter; AdapterInUse while requests in flight use it."""
        with self._lock:
            self._find(name)
            users = sorted(request for request, names in self._held.items() if name in names)
            if users:
                rest = f" and {len(users) - 1} more" if len(users) > 1 else ""
                raise AdapterInUse(
                    f"adapter {name!r} is used by request {users[0]!r}{rest}; "
                    "detach it when they have ended, or abort them"
                )
            del self._attached[name]

    def get(self, name: str) -> Adapter:
        """The adapter attached as `name`; UnknownName otherwise."""
        with self._lock:
            return self._find(name)

    def names(self) -> list[str]:
        """All attached names, sorted."""
        with self._lock:
            return sorted(self._attached)

    @property
    def bytes(self) -> int:
        """Size of all attached adapters."""
        with self._lock:
            return sum(one.bytes for one in self._attached.values())

    def acquire(self, request: str, names: Sequence[str]) -> tuple[Adapter, ...]:
        """The adapters of a request, which stay attached until `release`; all or none."""
        twice = [name for name, times in Counter(names).items() if times > 1]
        if twice:
            raise AdapterInputError(
                f"request {request!r} names adapter {twice[0]!r} more than once; name it once"
            )
        with self._lock:
            if request in self._held:
                raise AdapterInputError(f"request {request!r} already holds adapters")
            found = tuple(self._find(name) for name in names)
            if found:
                self._held[request] = tuple(names)
        return found

    def release(self, request: str) -> None:
        """Give back what a request holds; without effect if it holds nothing."""
        with self._lock:
            self._held.pop(request, None)

    def _find(self, name: str) -> Adapter:
        adapter = self._attached.get(name)
        if adapter is None:
            raise UnknownName(
                f"no adapter is attached as {name!r}; {nearest(name, self._attached)}"
            )
        return adapter
