"""Where the commands find the queue: the server that is set, or this home's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from api.settings import Settings


def settings_of() -> Settings:
    """The settings; raises WorkflowInputError with the variable that cannot be used."""
    from pydantic import ValidationError

    from api.settings import Settings
    from workflows.errors import WorkflowInputError

    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        name = "RAGWRIGHT_" + "_".join(str(part) for part in first["loc"]).upper()
        raise WorkflowInputError(f"{name}={first.get('input')!r}: {first['msg']}") from None


def queue_url(settings: Settings) -> str:
    """URL of the queue's server; raises WorkflowInputError where there is none."""
    from api.jobs.embedded import redis_home, running_url
    from workflows.errors import WorkflowInputError

    url = settings.redis_url or running_url()
    if url is None:
        raise WorkflowInputError(
            f"no job queue: RAGWRIGHT_REDIS_URL is not set, and no server runs in {redis_home()}; "
            "set the variable, or start one with: ragwright serve --embedded"
        )
    return url
