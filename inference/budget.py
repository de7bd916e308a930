"""What a run may spend and what it has spent, in the same units everywhere."""

from __future__ import annotations

from dataclasses import dataclass, fields

from inference.errors import InferenceInputError


@dataclass(frozen=True, slots=True)
class Usage:
    """What was spent: token counts, calls, retrievals (queries answered) and wall seconds.

    `prompt_tokens` counts every prompt token, `cached_tokens` those among them whose
    key/value entries were reused instead of computed.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    model_calls: int = 0
    retrievals: int = 0
    seconds: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        return Usage(*(getattr(self, name) + getattr(other, name) for name in _USAGE))

    @property
    def tokens(self) -> int:
        """Prompt plus completion tokens: the quantity a token budget limits."""
        return self.prompt_tokens + self.completion_tokens

    def to_dict(self) -> dict[str, int | float]:
        """Plain JSON object with one key per field."""
        return {name: getattr(self, name) for name in _USAGE}


_USAGE = tuple(field.name for field in fields(Usage))


@dataclass(frozen=True, slots=True)
class Budget:
    """Upper limits for a run or a request; None means unlimited.

    `tokens` limits prompt plus completion tokens, `seconds` wall time, `samples` candidate
    answers, `retrievals` queries sent to a retriever.
    """

    tokens: int | None = None
    seconds: float | None = None
    samples: int | None = None
    retrievals: int | None = None

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if value is not None and not value > 0:
                raise InferenceInputError(
                    f"budget {f.name}={value!r} must be positive; leave it out for no limit"
                )

    def exceeded_by(self, usage: Usage) -> str | None:
        """Name of the first limit that `usage` has reached, or None."""
        if self.tokens is not None and usage.tokens >= self.tokens:
            return "tokens"
        if self.seconds is not None and usage.seconds >= self.seconds:
            return "seconds"
        if self.retrievals is not None and usage.retrievals >= self.retrievals:
            return "retrievals"
        return None
