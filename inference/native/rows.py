"""The sequences a request needs, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from inference.errors import InferenceInputError, Unsupported
from inference.kv import Full, KVPolicy
from inference.native.blocks import BLOCK
from inference.native.compact import SLACK, Compact
from inference.native.prompts import own_entries
from inference.native.sequence import Sequence as Row
from inference.native.snapshot import Snapshot, check_past
from inference.requests import Request
from inference.speculative.base import Drafter

if TYPE_CHECKING:
    from inference.adapters.lora import Adapter
    from inference.native.lean import Lean
    from inference.native.loop import Core
    from inference.native.model import Model
    from inference.native.task import Job

POSITION_BYTES = 8


def check(model: Model, request: Request) -> None:
    """Raise Unsupported or InferenceInputError for what this model's forward pass cannot do."""
    kinds = {
        "kv": (KVPolicy, "inference.kv.parse"),
        "past": (Snapshot, "Snapshot.from_bytes"),
        "drafter": (Drafter, "inference.speculative.parse"),
    }
    for name, (kind, maker) in kinds.items():
        given = getattr(request, name)
        if given is not None and not isinstance(given, kind):
            raise InferenceInputError(
                f"request {request.id!r} has {name}={given!r:.60}; give what {maker} makes of it"
            )
    wants = {
        "a KV policy": request.kv is not None,
        "a past": request.past is not None,
        "skipped layers": request.skip_layers is not None,
        "adapters": bool(request.adapters),
        "taps": request.taps is not None,
    }
    wanted = [name for name, given in wants.items() if given]
    lean = model.lean
    if wanted and lean is None:
        raise Unsupported(
            f"request {request.id!r} asks for {wanted[0]}, which model {model.name!r} of type "
            f"{model.config.model_type!r} cannot do under transformers' forward pass; "
            "choose a model of the Llama, Qwen2, Qwen3, Mistral or SmolLM family"
        )
    if request.taps is not None and lean is not None:
        request.taps.resolved(len(lean.layers))
    if request.skip_layers is not None and lean is not None:
        given = request.skip_layers
        numbers = isinstance(given, tuple | list) and all(type(one) is int for one in given)
        if not (numbers and len(given) == 2 and 0 <= given[0] < given[1] <= len(lean.layers)):
            raise InferenceInputError(
                f"request {request.id!r} has skip_layers={given!r}; give (first, "
                f"behind the last) within the model's layers 0 to {len(lean.layers) - 1}"
            )
    if request.drafter is not None and request.guidance is not None:
        raise InferenceInputError(
            f"request {request.id!r} combines guidance with a drafter, and drafts are checked "
            "against one context only; leave one of them out"
        )
    own = own_entries(request)
    if own is not None and request.guidance is not None:
        raise InferenceInputError(
            f"request {request.id!r} combines guidance with {own}, which the engine "
            "cannot run together; leave one of them out"
        )
    if own is not None and request.taps is not None and request.taps.attention:
        raise InferenceInputError(
            f"request {request.id!r} taps attention weights with {own}, "
            "where entries differ per head; leave out one of them"
        )


def check_reading(request: Request, act: str, *, kv: bool = False) -> None:
    """Raise Unsupported for what only a generation can have; with `kv`, policies are fine."""
    wants = {
        "guidance": request.guidance is not None,
        "a grammar": request.grammar is not None,
        "taps": request.taps is not None,
        str(own_entries(request)): own_entries(request) is not None and not kv,
    }
    for what, given in wants.items():
        if given:
            raise Unsupported(
                f"request {request.id!r} gives {what}, under which {act} is not defined; "
                "leave it out"
            )


def rows_of(
    model: Model, core: Core, job: Job, room: int, salt: Callable[[tuple[Adapter, ...]], bytes]
) -> tuple[Row, ...]:
    """The request's own sequence, then those of its guiding contexts."""
    request, lean = job.request, model.lean
    main = Row(
        list(job.prompt),
        len(job.prompt) + room,
        salt(job.adapters),
        prompt=len(job.prompt),
        adapters=job.adapters,
    )
    if request.taps is not None and lean is not None:
        main.taps = request.taps.resolved(len(lean.layers))
    if request.skip_layers is not None:
        main.skip = range(*request.skip_layers)
    policy = request.kv
    if type(policy) is Full:  # a request that keeps all may share the engine's store
        policy = None
    if policy is None and (request.skip_layers is not None or request.past is not None):
        policy = Full()
    if policy is not None and lean is not None:
        _own_cache(model, lean, core, job, room, policy, main)
    others = [
        Row(list(ids), len(ids) + room, salt(adapters), prompt=len(ids), adapters=adapters)
        for ids, adapters in job.contexts
    ]
    rows = (main, *others)
    if others:
        for row in rows:
            row.group = rows
        blocks = sum(-(-row.expected // BLOCK) for row in rows)
        _fits(core, job, blocks)
    return rows


def _own_cache(
    model: Model, lean: Lean, core: Core, job: Job, room: int, policy: KVPolicy, row: Row
) -> None:
    """Give a row a cache of its own, perhaps with entries that were computed before."""
    past = job.request.past
    row.cache = Compact(len(lean.layers), lean.kv_heads, policy, lean.rotary)
    if past is not None:
        past.check(core.runner.store, model.vocabulary, model.context_length)
        most = policy.most(len(job.prompt), room)
        check_past(past, model.fingerprint, row, policy, most)
        past.revive(row.cache, lean.device)
        row.cached = row.reused = len(past.token_ids)
    row.chunk = policy.chunk
    entries = policy.most(len(job.prompt), room) + SLACK
    positions = POSITION_BYTES * len(lean.layers) * lean.kv_heads
    token_bytes = core.runner.store.token_bytes
    row.reserve = -(-entries * (token_bytes + positions) // (BLOCK * token_bytes))
    _fits(core, job, row.reserve)


def _fits(core: Core, job: Job, blocks: int) -> None:
    if blocks > core.blocks.capacity:
        size = BLOCK * core.runner.store.token_bytes
        raise InferenceInputError(
            f"request {job.request.id!r} needs {blocks * size} bytes of key/value entries and the "
            f"engine has {core.blocks.capacity * size}; raise kv_cache_bytes, or shorten prompt "
            "or max_tokens"
        )
