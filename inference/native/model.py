"""A causal language model from a folder, ready for one forward pass at a time."""

from __future__ import annotations

import ctypes
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from safetensors import SafetensorError

from inference.errors import InferenceError, InferenceInputError
from inference.native.fingerprint import fingerprint
from inference.native.lean import Lean, runs_lean
from inference.native.plain import FAMILIES, Plain
from inference.native.step import Step
from inference.terminal import bars_only_on_terminal

ForwardPath = Literal["auto", "lean", "transformers"]

PLAIN_LAYERS = {"full_attention", "sliding_attention"}
MOVING_ROPE = {"dynamic", "longrope"}
FAULTS = (OSError, ValueError, KeyError, RuntimeError, SafetensorError)


class Network(Protocol):
    """A forward pass over the rows of a step."""

    device: torch.device
    dtype: torch.dtype
    vocabulary: int
    width: int

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights, tied ones once."""
        ...

    def forward(self, step: Step) -> torch.Tensor | None:
        """Float32 logits [kept, vocabulary] of the rows a step keeps, or None."""
        ...


class Model:
    """A network, its tokenizer and the facts about them that decoding needs."""

    def __init__(
        self,
        network: Network,
        tokenizer: Any,
        name: str,
        config: Any,
        stop_ids: frozenset[int],
        folder: Path,
    ) -> None:
        self._folder = folder
        self.network = network
        self.tokenizer = tokenizer
        self.name = name
        self.config = config
        self.device = network.device
        self.context_length = _context_length(config, name)
        self.vocabulary = network.vocabulary
        self.width = network.width  # of the logits
        self.stop_ids = stop_ids

    @classmethod
    def load(
        cls, folder: Path, name: str, dtype: str, device: str, *, path: ForwardPath = "auto"
    ) -> Model:
        """Load safetensors from `folder`; 'auto' takes CUDA and bfloat16 where there is CUDA.

        `path` is whose forward pass runs: 'lean' ours, 'transformers' theirs, 'auto' ours where
        it covers the architecture.
        """
        from transformers import AutoConfig, AutoTokenizer

        place = _device(device)
        kind = _dtype(dtype, place)
        try:
            with bars_only_on_terminal():
                whole = AutoConfig.from_pretrained(folder, local_files_only=True)
                tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except FAULTS as error:
            raise _unloadable(name, folder, error) from error
        config = whole.get_text_config()
        _context_length(config, name)
        _refuse_unsupported(config, name)
        lean = runs_lean(config)
        if path == "lean" and not lean:
            raise InferenceInputError(
                f"model {name!r} is of type {config.model_type!r}, for which there is no lean "
                "forward pass; use forward 'auto' or 'transformers'"
            )
        network: Network
        if lean and path != "transformers":
            network = _lean(folder, name, config, kind, place)
        else:
            network = _plain(folder, name, kind, place)
        stop_ids = _stop_ids(folder, config, tokenizer)
        _trim()
        return cls(network, tokenizer, name, config, stop_ids, folder)

    @property
    def lean(self) -> Lean | None:
        """Our own forward pass, to which methods attach; None where transformers' runs."""
        return self.network if isinstance(self.network, Lean) else None

    def early(self, layers: int) -> Model:
        """An early exit behind the first layers of a lean model, which shares its weights."""
        assert self.lean is not None
        return Model(
            self.lean.first(layers),
            self.tokenizer,
            f"{self.name}, first {layers} layers",
            self.config,
            self.stop_ids,
            self._folder,
        )

    @cached_property
    def fingerprint(self) -> str:
        """Digest of configuration, weights and their type: whose key/value entries are alike."""
        return fingerprint(self._folder, self.name, self.config, self.network.dtype)

    @cached_property
    def weights_digest(self) -> str:
        """Digest of configuration and weights, in whatever type they run: whose heads fit."""
        return fingerprint(self._folder, self.name, self.config, torch.float32)

    def forward(self, step: Step) -> torch.Tensor | None:
        """Float32 logits [kept, vocabulary] of the rows a step keeps, or None."""
        try:
            return self.network.forward(step)
        except torch.OutOfMemoryError as error:
            raise InferenceError(
                f"{self.device} has too little memory for model {self.name!r} at this length; "
                "use a shorter prompt, dtype bfloat16, or smaller kv_cache_bytes or step_tokens"
            ) from error

    def decode(self, ids: list[int]) -> str:
        """Text of `ids` without special tokens."""
        text: str = self.tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text


def _context_length(config: Any, name: str) -> int:
    length = getattr(config, "max_position_embeddings", None)
    if not isinstance(length, int):
        raise InferenceInputError(
            f"model {name!r} does not state its context length; "
            "add max_position_embeddings to its config.json"
        )
    return length


def _stop_ids(folder: Path, config: Any, tokenizer: Any) -> frozenset[int]:
    from transformers import GenerationConfig

    stated = None
    if (folder / "generation_config.json").is_file():
        stated = GenerationConfig.from_pretrained(folder, local_files_only=True).eos_token_id
    for other in (getattr(config, "eos_token_id", None), tokenizer.eos_token_id):
        stated = other if stated is None else stated
    if stated is None:
        return frozenset()
    return frozenset(stated if isinstance(stated, list) else [stated])


def _trim() -> None:
    """Give the memory that loading has freed back to the system, where the C library can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise InferenceInputError(
            "device 'cuda' was asked for and torch sees no CUDA device; use 'cpu' or 'auto'"
        )
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        name = "bfloat16" if device.type == "cuda" else "float32"
    found: torch.dtype = getattr(torch, name)
    return found


def _lean(folder: Path, name: str, config: Any, dtype: torch.dtype, device: torch.device) -> Lean:
    try:
        return Lean(folder, name, config, dtype, device)
    except (RuntimeError, KeyError) as error:  # shapes that do not fit together
        raise _unloadable(name, folder, error) from error


def _plain(folder: Path, name: str, dtype: torch.dtype, device: torch.device) -> Plain:
    from transformers import AutoModelForCausalLM

    try:
        with bars_only_on_terminal():
            network, report = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
    except FAULTS as error:
        raise _unloadable(name, folder, error) from error
    if missing := sorted(report["missing_keys"]):
        raise InferenceError(
            f"model {name!r} in {folder} lacks {len(missing)} of its tensors, the first "
            f"{missing[0]!r}; fetch or convert the checkpoint again"
        )
    return Plain(network.to(device), name)


def _unloadable(name: str, folder: Path, error: Exception) -> InferenceError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return InferenceError(
        f"model {name!r} in {folder} cannot be loaded: {reason}; "
        "fetch or convert the checkpoint again"
    )


def _refuse_unsupported(config: Any, name: str) -> None:
    """Raise for what a batch of independent sequences cannot be right with."""
    others = set(getattr(config, "layer_types", None) or ()) - PLAIN_LAYERS
    if others:
        raise InferenceInputError(
            f"model {name!r} has layers of type {sorted(others)}; the native engine runs full and "
            f"sliding attention only; {FAMILIES}"
        )
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = {str(rope.get("rope_type"))} & MOVING_ROPE
    if kinds:
        # Their frequencies follow the longest sequence of a forward, so neighbours would matter.
        raise InferenceInputError(
            f"model {name!r} scales its positions by {sorted(kinds)[0]!r}, which would let the "
            f"requests of a batch change each other; {FAMILIES}"
        )
