"""The engine contract, what an engine can do, and the table of engines.

Configurations are light pydantic models so that a workflow can be validated without loading
torch; `open()` does the loading.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from enum import StrEnum
from typing import Annotated, ClassVar, Literal, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field

from inference.requests import Chunk, Output, Request, Score

Role = Literal["mixed", "prompt", "token"]
"""Which phases of a generation an engine computes."""


class Capability(StrEnum):
    """Something a workflow node may need from its engine."""

    CHAT = "chat"
    STREAM = "stream"
    SCORE = "score"
    SEED = "seed"
    PREFIX_REUSE = "prefix_reuse"
    ABORT = "abort"
    LOGITS = "logits"
    HIDDEN_STATES = "hidden_states"
    ATTENTION_WEIGHTS = "attention_weights"
    TREE_MASK = "tree_mask"
    LORA = "lora"
    GRAMMAR = "grammar"
    KV_POLICY = "kv_policy"
    SPECULATION = "speculation"
    LOGPROBS = "logprobs"
    RESUME = "resume"


@runtime_checkable
class Engine(Protocol):
    """Turns requests into outputs; every method may be called from any thread."""

    @property
    def model(self) -> str:
        """Name or path the model was resolved from."""
        ...

    @property
    def context_length(self) -> int:
        """Longest prompt plus completion, in tokens."""
        ...

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What this engine can do."""
        ...

    def generate(self, requests: Sequence[Request]) -> list[Output]:
        """Outputs in the order of the requests; one bad request refuses all, computing none.

        A request that alone cannot go on has an output that says so (`FinishReason.FAILED`).
        """
        ...

    def stream(self, request: Request) -> AsyncIterator[Chunk]:
        """Chunks as they are produced; closing the iterator aborts the request."""
        ...

    def score(self, request: Request, continuations: Sequence[str | Sequence[int]]) -> list[Score]:
        """Log-probabilities of each continuation after the request's prompt."""
        ...

    def count_tokens(self, request: Request) -> int:
        """Number of prompt tokens the request will cost."""
        ...

    def abort(self, request_id: str) -> bool:
        """Stop a running request at its next step; False if it is not running."""
        ...

    def close(self) -> None:
        """Release the model and its caches."""
        ...


@runtime_checkable
class Equippable(Protocol):
    """An engine that may carry what was trained for its very model."""

    def equip(self, name: str) -> bool:
        """Attach the shipped adapter `name`; False where there is none for this model."""
        ...


@runtime_checkable
class Watchable(Protocol):
    """An engine that shows what its model attends to, token by token."""

    @property
    def model(self) -> str:
        """Name or path the model was resolved from."""
        ...

    @property
    def context_length(self) -> int:
        """Longest prompt plus completion, in tokens."""
        ...

    @property
    def layers(self) -> int:
        """Layers of the model."""
        ...

    @property
    def weights_digest(self) -> str:
        """Digest of configuration and weights: for whom a threshold was calibrated."""
        ...

    def encode(self, request: Request) -> list[int]:
        """Token ids of a request's prompt."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, without control tokens."""
        ...

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Text of each token, with the space before a word; "" for control tokens."""
        ...


class EngineConfig(BaseModel):
    """Options of one engine as they stand in a workflow file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    provides: ClassVar[frozenset[Capability]] = frozenset()
    """Capabilities known before the engine is opened."""

    def __hash__(self) -> int:
        """Options may be mappings; equal ones are one engine."""
        return hash(json.dumps(self.model_dump(mode="json"), sort_keys=True))

    def open(self) -> Engine:
        """Load the model; slow."""
        raise TypeError(f"{type(self).__name__} does not say how to open its engine")


class NativeConfig(EngineConfig):
    """The engine of this project: transformers models under an own step loop.

    A step computes at most `step_tokens` tokens of at most `step_rows` requests; left out, it is
    the knee that `ragwright models calibrate` measured here, or 512 without one. Key/value
    entries of all running requests take up to `kv_cache_bytes`, but never less than one context;
    `prefix_cache_bytes` of them stay for later requests that begin alike. `schedule` is who goes
    first in a step: answers, with prompts in what room they leave, or whole prompts, which stalls
    the answers and is there to be compared with. `forward` is whose forward pass runs: 'lean' this
    engine's, to which methods attach, or that of transformers; 'auto' takes the lean one where
    it covers the model's architecture. `adapters` are attached at once: name to PEFT folder.
    `role` splits the phases between engines: 'prompt' reads prompts for `export_cache` and
    generates nothing, 'token' takes requests whose prompt was computed elsewhere (Splitwise,
    arXiv 2311.18677); 'mixed' does both.
    """

    model: str = "default"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = None
    prefix_cache_bytes: int = Field(512 * 2**20, ge=0)
    kv_cache_bytes: int = Field(2**31, ge=1)
    step_tokens: int | None = Field(default=None, ge=1)
    step_rows: int = Field(256, ge=1)
    schedule: Literal["splitfuse", "prefill_first"] = "splitfuse"
    forward: Literal["auto", "lean", "transformers"] = "auto"
    adapters: dict[Annotated[str, Field(min_length=1)], str] = Field(default_factory=dict)
    role: Role = "mixed"

    provides = frozenset(
        {
            Capability.CHAT,
            Capability.STREAM,
            Capability.SCORE,
            Capability.SEED,
            Capability.PREFIX_REUSE,
            Capability.ABORT,
            Capability.GRAMMAR,
            Capability.LOGPROBS,
            Capability.LOGITS,
            Capability.HIDDEN_STATES,
            Capability.ATTENTION_WEIGHTS,
            Capability.TREE_MASK,
            Capability.LORA,
            Capability.KV_POLICY,
            Capability.SPECULATION,
            Capability.RESUME,
        }
    )

    def open(self) -> Engine:
        """Resolve the model (fetching it if needed) and load it."""
        from inference.native.engine import NativeEngine

        return NativeEngine.from_config(self)


class OpenAIConfig(EngineConfig):
    """A server that speaks OpenAI's protocol, local or remote; the key is never in a file.

    `base_url` falls back to RAGWRIGHT_OPENAI_BASE_URL, and may name another host than this machine
    only if that variable or RAGWRIGHT_OPENAI_HOSTS names it too. `api_key_env` names the variable
    that holds the key. `timeout` is the longest silence, in seconds. `tokenizer` names a model of
    the store whose tokenizer counts where the server does not.
    """

    base_url: str | None = None
    model: str | None = None
    api_key_env: str = Field(default="RAGWRIGHT_OPENAI_API_KEY", pattern=r"^RAGWRIGHT_[A-Z0-9_]+$")
    timeout: float = Field(default=120.0, gt=0, allow_inf_nan=False)
    retries: int = Field(default=3, ge=0, le=20)
    context_length: int | None = Field(default=None, ge=2)
    api: Literal["auto", "chat", "completions"] = "auto"
    tokenizer: str | None = None
    concurrency: int = Field(default=16, ge=1, le=1024)

    provides = frozenset(
        {
            Capability.CHAT,
            Capability.STREAM,
            Capability.SCORE,
            Capability.SEED,
            Capability.ABORT,
            Capability.GRAMMAR,
            Capability.LOGPROBS,
        }
    )

    def open(self) -> Engine:
        """Connect, and ask the server what it can do; the engine may offer less than `provides`."""
        from inference.openai.engine import OpenAIEngine

        return OpenAIEngine.from_config(self)


class VLLMConfig(EngineConfig):
    """vLLM in this process where it can be imported, else its server as a child process.

    A process holds one vLLM at a time; while it is open, others are servers.

    The server is run from the environment RAGWRIGHT_VLLM_ENV, which also keeps vLLM out of this
    process, or from `.venv-vllm`; a workflow file cannot name one, because its programs would be
    run. `kv_cache_gib` is the memory of its cache, `startup_seconds` how long the server may load.
    """

    model: str = "default"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    context_length: int | None = Field(default=None, ge=2)
    threads: int | None = Field(default=None, ge=1)
    kv_cache_gib: int = Field(default=1, ge=1)
    startup_seconds: float = Field(default=600.0, gt=0, allow_inf_nan=False)
    concurrency: int = Field(default=16, ge=1, le=1024)

    provides = OpenAIConfig.provides | {Capability.PREFIX_REUSE}

    def open(self) -> Engine:
        """Resolve the model, and load it or start the server and wait until it answers."""
        from inference.vllm.engine import open_engine

        return open_engine(self)


ENGINES: dict[str, type[EngineConfig]] = {
    "native": NativeConfig,
    "openai": OpenAIConfig,
    "vllm": VLLMConfig,
}
