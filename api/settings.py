"""Settings of the service, read from variables RAGWRIGHT_..."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """What an operator may set; each field is the variable RAGWRIGHT_ plus its name in capitals.

    Times are seconds, sizes bytes. `redis_url` None means the private server of `--embedded`.
    `postgres_url` None keeps checkpoints in SQLite files on this host. `engine`, `model` and
    `engine_options` (JSON) say what answers /v1/chat/completions and its kin: a row of the engine
    table, its model (None: its own default) and other options of it. `engine_slowdown` is how many
    times longer than alone an accepted request may take; with more, more may wait.
    """

    model_config = SettingsConfigDict(env_prefix="RAGWRIGHT_", extra="ignore")

    redis_url: str | None = None
    postgres_url: str | None = None
    namespace: str = Field("ragwright", pattern=r"^[a-z][a-z0-9_-]{0,31}$")
    lease: float = Field(10.0, gt=0)
    retention: float = Field(7 * 86400.0, gt=0)
    max_queued: int = Field(100_000, ge=1)
    max_body: int = Field(32 * 2**20, ge=1)
    allow_uploads: bool = True
    rate_per_minute: int = Field(600, ge=1)
    concurrency_per_key: int = Field(32, ge=1)
    engine: str = "native"
    model: str | None = None
    engine_options: dict[str, Any] = Field(default_factory=dict)
    engine_running: int = Field(16, ge=1)
    engine_waiting: int = Field(64, ge=0)
    engine_slowdown: float = Field(2.0, ge=1.5)
    request_seconds: float = Field(300.0, gt=0)
    drain: float = Field(30.0, gt=0)
    telemetry: Literal["off", "console", "otlp"] = "off"
    log_content: bool = False
