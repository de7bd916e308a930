"""Errors of this package."""

from __future__ import annotations

from inference.errors import MethodInputError


class TriggerInputError(MethodInputError):
    """A retrieval trigger that does not exist, or an option it cannot take."""

    code = "bad_trigger"
