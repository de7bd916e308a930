"""The data that crosses the engine's door: requests, sampling, outputs, statistics."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal
from uuid import uuid4

from inference.budget import Usage
from inference.errors import AdapterInputError, InferenceInputError, RequestFailed, Unsupported
from inference.grammar import Grammar

if TYPE_CHECKING:
    from inference.guidance import Guidance
    from inference.kv import KVPolicy
    from inference.native.snapshot import Snapshot
    from inference.speculative import Drafter
    from inference.taps import Taps


class FinishReason(StrEnum):
    """Why a generation ended."""

    STOP = "stop"
    """The model emitted an end-of-sequence token."""
    STOP_STRING = "stop_string"
    """A stop string of the request appeared in the text."""
    LENGTH = "length"
    """`max_tokens` were produced or the context is full."""
    ABORTED = "aborted"
    """`Engine.abort` was called for this request."""
    DEADLINE = "deadline"
    """The request's `seconds` ran out; the text so far is kept."""
    FAILED = "failed"
    """This request alone could not go on; `notes["error"]` of its output says why."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a dialogue."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen; temperature 0 is greedy and ignores the filters.

    The order is: repetition penalty, temperature, top-k, top-p, min-p. A seed makes the draw
    for a position a function of (seed, position) only, so batching cannot change it.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, (kind, low, high, rule) in _SAMPLING_RULES.items():
            value = getattr(self, name)
            if value is None and name in ("top_k", "seed"):
                continue
            if not _is(kind, value):
                raise _refused(name, value, f"{_SPELT[kind]}, {rule}")
            # numpy would compare in the narrow type of its own scalars
            number = value if isinstance(value, int | float) else float(value)
            if not low <= number <= high:
                raise _refused(name, value, rule)
        if not isinstance(self.stop, tuple | list) or not all(
            isinstance(text, str) and text for text in self.stop
        ):
            raise _refused("stop", self.stop, "a tuple made of non-empty strings")


_LARGEST, _SMALLEST = sys.float_info.max, math.ulp(0.0)
_SPELT: dict[type[Any], str] = {Integral: "an integer", Real: "a number"}
_SAMPLING_RULES: dict[str, tuple[type[Any], float, float, str]] = {
    "max_tokens": (Integral, 1, math.inf, "at least 1"),
    "temperature": (Real, 0, _LARGEST, "finite and >= 0"),
    "top_k": (Integral, 1, math.inf, "at least 1, or left out"),
    "top_p": (Real, _SMALLEST, 1, "in (0, 1]"),
    "min_p": (Real, 0, 1, "in [0, 1]"),
    "repetition_penalty": (Real, _SMALLEST, _LARGEST, "finite and > 0 (1 means none)"),
    "seed": (Integral, 0, 2**64 - 1, "in [0, 2**64)"),
}


def _is(kind: type[Any], value: object) -> bool:
    """True and False are numbers to Python, but nobody means them as such."""
    return isinstance(value, kind) and not isinstance(value, bool)


def _refused(name: str, value: object, rule: str) -> InferenceInputError:
    return InferenceInputError(f"sampling parameter {name}={value!r} must be {rule}")


def tick(seconds: float) -> float:
    """Seconds as a whole multiple of 2**-30: such numbers add up exactly, in any order."""
    return round(seconds * 2**30) / 2**30


def require_names(place: str, adapters: object) -> None:
    """Raise AdapterInputError unless `adapters` are different names in a tuple or list."""
    if not isinstance(adapters, tuple | list) or not all(
        isinstance(name, str) and name for name in adapters
    ):
        raise AdapterInputError(
            f"{place} has adapters={adapters!r}; give a tuple of the names they are attached under"
        )
    twice = [name for at, name in enumerate(adapters) if name in adapters[:at]]
    if twice:
        raise AdapterInputError(f"{place} names adapter {twice[0]!r} more than once; name it once")


@dataclass(frozen=True, slots=True)
class Request:
    """One generation: exactly one of `prompt`, `messages` and `token_ids` is given.

    `messages` go through the model's chat template; `prompt` is tokenised as it stands;
    `token_ids` are used untouched. `truncate="left"` allows dropping the oldest prompt tokens
    when the prompt is longer than the context; the default refuses (`PromptTooLong`).
    `seconds` is a deadline for the whole request. With a `grammar` the answer belongs to it, or
    its `finish_reason` says what cut it; `notes["grammar"]` of the output tells which.
    `adapters` are names that were attached to the engine; their deltas add up. `tenant` keeps
    what is cached of this request from requests of others. With `logprobs` = n each produced
    token comes with its log-probability and the n most probable tokens in its place. `kv` decides
    what the cache keeps, `past` is a shrunken cache to go on from, `guidance` combines the logits
    of several contexts, `taps` show the forward passes, and the layers `skip_layers` (first, behind
    the last) are left out for every token but the prompt's.
    `resumed` are tokens that this very generation had produced before it was cut off: they are
    read, not decoded again, and the answer begins with them. Logits, a seed's draws, grammar,
    stop strings and penalties go on as if nothing had been cut. Where entries are shrunk or
    watched (`kv`, `past`, `skip_layers`, `taps`) they are decoded again, and the notes say so.
    `drafter` guesses tokens ahead, which the model checks many at a time; `references` are texts it
    may copy from, in the prompt or not, and `draft_prompt` is what it reads in place of the prompt
    if it is a model itself.
    """

    prompt: str | None = None
    messages: Sequence[Message] | None = None
    token_ids: Sequence[int] | None = None
    sampling: SamplingParams = SamplingParams()
    id: str = field(default_factory=lambda: uuid4().hex)
    truncate: Literal["never", "left"] = "never"
    seconds: float | None = None
    grammar: Grammar | None = None
    adapters: tuple[str, ...] = ()
    tenant: str = ""
    logprobs: int | None = None
    kv: KVPolicy | None = None
    past: Snapshot | None = None
    guidance: Guidance | None = None
    taps: Taps | None = None
    skip_layers: tuple[int, int] | None = None
    resumed: tuple[int, ...] = ()
    drafter: Drafter | None = None
    references: tuple[str, ...] = ()
    draft_prompt: str | Sequence[Message] | None = None

    def __post_init__(self) -> None:
        given = [n for n in ("prompt", "messages", "token_ids") if getattr(self, n) is not None]
        if len(given) != 1:
            raise InferenceInputError(
                f"request {self.id!r} gives {given or 'nothing'}; "
                "give exactly one of prompt, messages, token_ids"
            )
        if not getattr(self, given[0]):
            raise InferenceInputError(f"request {self.id!r} has an empty {given[0]}")
        if self.logprobs is not None and not (
            _is(Integral, self.logprobs) and 0 <= self.logprobs <= 20
        ):
            raise InferenceInputError(
                f"request {self.id!r} has logprobs={self.logprobs!r}; give 0 to 20, or leave it out"
            )
        if self.seconds is not None and not (_is(Real, self.seconds) and self.seconds > 0):
            raise InferenceInputError(
                f"request {self.id!r} has seconds={self.seconds!r}; give a number above 0, or "
                "leave it out for no deadline"
            )
        if not isinstance(self.resumed, tuple | list) or not all(
            _is(Integral, token) and token >= 0 for token in self.resumed
        ):
            raise InferenceInputError(
                f"request {self.id!r} has resumed={self.resumed!r:.60}; give the token ids that it "
                "had produced, or leave it out"
            )
        if not isinstance(self.tenant, str):
            raise InferenceInputError(
                f"request {self.id!r} has tenant={self.tenant!r}; give a text, or leave it out"
            )
        require_names(f"request {self.id!r}", self.adapters)
        if not isinstance(self.references, tuple | list) or not all(
            isinstance(text, str) for text in self.references
        ):
            raise InferenceInputError(
                f"request {self.id!r} has references={self.references!r:.60}; give a tuple of texts"
            )
        if self.grammar is not None and self.sampling.stop:
            raise InferenceInputError(
                f"request {self.id!r} gives a grammar and the stop string "
                f"{self.sampling.stop[0]!r}, which could cut an answer before it is complete; "
                "leave out stop: the grammar says where the answer ends"
            )


NATIVE_ONLY = ("adapters", "kv", "past", "guidance", "taps", "skip_layers", "resumed", "drafter")
"""Fields that only the native engine honours."""


def refuse_native_only(request: Request, place: str) -> None:
    """Raise Unsupported, naming the field, for what only the native engine does."""
    for name in NATIVE_ONLY:
        if getattr(request, name):
            raise Unsupported(
                f"request {request.id!r} gives {name}, and {place} cannot honour it; "
                "leave it out, or use the native engine for it"
            )


@dataclass(frozen=True, slots=True)
class Stats:
    """What one generation cost inside the engine.

    `peak_kv_bytes` is measured from the cache tensors; `idealized_seconds` is predicted from the
    tokens that were computed, None where the model was not calibrated on this machine;
    `truncated_tokens` counts prompt tokens dropped on request, `resumed_tokens` those of the
    answer that were taken over from `Request.resumed`. Seconds of the native engine are whole
    multiples of 2**-30 s, so that they add up without rounding.
    """

    forwards: int = 0
    drafted: int = 0
    accepted: int = 0
    peak_kv_bytes: int = 0
    seconds: float = 0.0
    prefill_seconds: float = 0.0
    idealized_seconds: float | None = None
    truncated_tokens: int = 0
    resumed_tokens: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON object with one key per field."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural-log probability of a produced token under the model, before temperature and filters.

    `id` is None where a server names tokens by their text only. `top` are the most probable
    tokens in its place as (text, log-probability), the first being the most probable.
    """

    text: str
    logprob: float
    id: int | None = None
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Output:
    """A finished generation; `text` excludes the stop string, `token_ids` are all produced ids.

    `usage.completion_tokens` counts those that were decoded, which are all but
    `stats.resumed_tokens`; `logprobs` holds one entry for each of these, where the request asked
    for them. Of a failed one `notes["error"]` holds `code` and `message`.
    """

    id: str
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    stats: Stats
    notes: Mapping[str, Any] = field(default_factory=dict)
    logprobs: tuple[TokenLogprob, ...] = ()

    def raise_if_failed(self) -> None:
        """Raise RequestFailed, with the code of the cause, if the request could not be finished."""
        if self.finish_reason is FinishReason.FAILED:
            error = self.notes["error"]
            raise RequestFailed(f"request {self.id!r} failed: {error['message']}", error["code"])

    def to_dict(self) -> dict[str, Any]:
        """The object that `ragwright generate --json` prints for this output."""
        return {
            "id": self.id,
            "text": self.text,
            "token_ids": list(self.token_ids),
            "finish_reason": self.finish_reason.value,
            "usage": self.usage.to_dict(),
            "stats": self.stats.to_dict(),
            **({"notes": dict(self.notes)} if self.notes else {}),
            **({"logprobs": [asdict(one) for one in self.logprobs]} if self.logprobs else {}),
        }


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a streamed generation: whole UTF-8 characters, never part of a stop string.

    `logprobs` are those of its tokens, where the request asked for them and the engine gives them
    along. Of a resumed generation they carry what is behind `Request.resumed`. The last chunk of a
    stream carries the complete `output`.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    output: Output | None = None
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Score:
    """Natural-log probabilities of a given continuation, one per continuation token."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]

    @property
    def total(self) -> float:
        """Log-probability of the whole continuation."""
        return math.fsum(self.logprobs)
