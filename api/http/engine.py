"""Which engine the settings name."""

from __future__ import annotations

from pydantic import ValidationError

from api.settings import Settings
from inference import EngineConfig
from inference.engine import ENGINES
from inference.errors import InferenceInputError
from inference.suggest import nearest


def engine_config(settings: Settings) -> EngineConfig:
    """The engine that the settings name; raises InferenceInputError for what is no such engine."""
    row = ENGINES.get(settings.engine)
    if row is None:
        raise InferenceInputError(
            f"RAGWRIGHT_ENGINE={settings.engine!r} is unknown; {nearest(settings.engine, ENGINES)}"
        )
    named = {} if settings.model is None else {"model": settings.model}
    try:
        return row.model_validate({**settings.engine_options, **named})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InferenceInputError(
            f"RAGWRIGHT_ENGINE_OPTIONS: option {where!r} of the engine {settings.engine!r}: "
            f"{first['msg']} (got {first.get('input')!r})"
        ) from None
