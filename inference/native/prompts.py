"""Requests to token ids: chat template, tokenizer, and the room the context leaves."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol
from uuid import uuid4

from inference.errors import InferenceInputError, NoChatTemplate, PromptTooLong
from inference.kv import Full
from inference.requests import Message, Request


class Model(Protocol):
    """What is asked of a model here; the ids of its tokens are those below `vocabulary`."""

    tokenizer: Any
    name: str
    context_length: int
    vocabulary: int


def encode(model: Model, request: Request) -> list[int]:
    """Prompt ids of a request, before any truncation."""
    if request.token_ids is not None:
        return _checked(model, f"request {request.id!r}", request.token_ids)
    if request.messages is not None:
        ids = _dialogue_ids(model, request.messages, request.id)
    else:
        ids = model.tokenizer.encode(request.prompt)
    if not ids:
        raise InferenceInputError(f"request {request.id!r} has a prompt of no tokens; give a text")
    return ids


def _dialogue_ids(model: Model, messages: Sequence[Message], request_id: str) -> list[int]:
    """Ids of the rendered dialogue; control tokens spelled out in a message stay plain text.

    A retrieved document may hold the text "<|im_end|>", and must not end its turn with it. Such a
    dialogue is rendered with a mark in place of each content, and the pieces are encoded apart:
    the template's with control tokens, the contents without.
    """
    added = model.tokenizer.added_tokens_decoder.values()
    specials = [token.content for token in added if token.special]
    if not any(token in m.content for m in messages for token in specials):
        text = render(model, messages, request_id)
        ids: list[int] = model.tokenizer.encode(text, add_special_tokens=False)
        return ids
    key = uuid4().hex
    marked = [replace(m, content=f"{key}:{at}:{key}") for at, m in enumerate(messages)]
    pieces = re.split(f"{key}:([0-9]+):{key}", render(model, marked, request_id))
    ids = []
    for at, piece in enumerate(pieces):
        content = at % 2 == 1
        text = messages[int(piece)].content if content else piece
        ids += model.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=content)
    return ids


def render(model: Model, messages: Sequence[Message], request_id: str) -> str:
    """The dialogue as the model's chat template writes it, opening the assistant's turn."""
    from jinja2 import TemplateError

    if not model.tokenizer.chat_template:
        raise NoChatTemplate(
            f"request {request_id!r} gives messages and model {model.name!r} has no chat template; "
            "give a plain prompt (--raw on the command line) or choose a chat model"
        )
    turns = [{"role": m.role, "content": m.content} for m in messages]
    try:
        text: str = model.tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True
        )
    except TemplateError as error:
        raise InferenceInputError(
            f"request {request_id!r}: the chat template of model {model.name!r} refuses the roles "
            f"{[m.role for m in messages]}: {error}"
        ) from error
    return text


def fit(model: Model, request: Request, ids: list[int]) -> tuple[list[int], int]:
    """The ids that fit, and how many of the oldest were dropped (only with truncate='left').

    At least one token must be producible. Truncation makes room for `max_tokens`, but keeps at
    least half of the context for the prompt. Raises PromptTooLong.
    """
    context = model.context_length
    if len(ids) < context:
        return ids, 0
    if request.truncate == "left":
        keep = max(context - request.sampling.max_tokens, context // 2)
        return ids[-keep:], len(ids) - keep
    raise PromptTooLong(
        f"request {request.id!r} has a prompt of {len(ids)} tokens and model {model.name!r} a "
        f"context of {context}, which must also hold what is generated; shorten the prompt to at "
        f"most {context - 1} tokens, or set truncate to 'left' to drop its oldest tokens"
    )


def resumed_ids(request: Request, vocabulary: int) -> Sequence[int]:
    """Tokens an answer begins with: none where the cache would not hold them as they were."""
    if request.taps is not None or own_entries(request) is not None:
        return ()
    for at, token in enumerate(request.resumed):
        if token >= vocabulary:
            raise InferenceInputError(
                f"request {request.id!r} resumes with token id {token} at position {at}, which is "
                f"not in the vocabulary (0 to {vocabulary - 1}); resume with the same model"
            )
    return request.resumed


def own_entries(request: Request) -> str | None:
    """Why a request needs key/value entries of its own, if it does."""
    if request.kv is not None and type(request.kv) is not Full:
        return "a KV policy"
    if request.skip_layers is not None:
        return "skipped layers"
    return "a past" if request.past is not None else None


def continuation_ids(
    model: Model, request: Request, continuations: Sequence[str | Sequence[int]]
) -> list[list[int]]:
    """Token ids of continuations to score, none empty and each within the context."""
    room = model.context_length - len(fit(model, request, encode(model, request))[0])
    found = []
    for at, given in enumerate(continuations):
        if isinstance(given, str):
            ids: list[int] = model.tokenizer.encode(given, add_special_tokens=False)
        else:
            ids = _checked(model, f"continuation {at} of request {request.id!r}", given)
        if not ids:
            raise InferenceInputError(
                f"continuation {at} of request {request.id!r} has no tokens; give a text to score"
            )
        if len(ids) > room:
            raise PromptTooLong(
                f"continuation {at} of request {request.id!r} has {len(ids)} tokens, and the "
                f"context of {model.context_length} leaves room for {room} after the prompt; "
                "shorten one of them"
            )
        found.append(ids)
    return found


def _checked(model: Model, place: str, given: Sequence[int]) -> list[int]:
    ids = list(given)
    for at, token_id in enumerate(ids):
        if not 0 <= token_id < model.vocabulary:
            raise InferenceInputError(
                f"{place}: token id {token_id} at position {at} is not in the vocabulary of model "
                f"{model.name!r} (0 to {model.vocabulary - 1})"
            )
    return ids
