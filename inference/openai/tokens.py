"""How many tokens a request will cost: asked of the server, or counted with its tokenizer here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from inference.errors import InferenceInputError, ServerUnavailable
from inference.openai.connection import Connection
from inference.requests import Message, Request


class Tokens(Protocol):
    """Prompt text, dialogue or bare text to token ids."""

    async def prompt(self, text: str) -> list[int]:
        """Ids of a prompt, with the special tokens the model begins with."""
        ...

    async def dialogue(self, messages: Sequence[Message]) -> list[int]:
        """Ids of messages under the chat template, opening the assistant's turn."""
        ...

    async def bare(self, text: str) -> list[int]:
        """Ids of a text without special tokens."""
        ...


class ServerTokens:
    """The /tokenize of vLLM and of `ragwright serve`, which stands beside /v1."""

    def __init__(self, connection: Connection, model: str) -> None:
        self._connection = connection
        self._model = model
        root = connection.address.url.rstrip("/").removesuffix("/v1")
        self._url = f"{root}/tokenize"

    async def prompt(self, text: str) -> list[int]:
        """Ids of a prompt."""
        return await self._ask({"prompt": text, "add_special_tokens": True})

    async def dialogue(self, messages: Sequence[Message]) -> list[int]:
        """Ids of messages under the server's chat template."""
        return await self._ask({"messages": turns(messages), "add_generation_prompt": True})

    async def bare(self, text: str) -> list[int]:
        """Ids of a text without special tokens."""
        return await self._ask({"prompt": text, "add_special_tokens": False})

    async def _ask(self, body: dict[str, Any]) -> list[int]:
        answer = await self._connection.post(self._url, {"model": self._model, **body})
        ids = answer.get("tokens") if isinstance(answer, dict) else None
        if not isinstance(ids, list):
            raise ServerUnavailable(f"{self._url} answers without tokens")
        return ids


class LocalTokens:
    """The tokenizer of a model of the store, for a server that counts nothing itself."""

    def __init__(self, name: str) -> None:
        from transformers import AutoTokenizer

        from inference.models import resolve

        self._name = name
        self._tokenizer: Any = AutoTokenizer.from_pretrained(resolve(name))

    async def prompt(self, text: str) -> list[int]:
        """Ids of a prompt."""
        ids: list[int] = self._tokenizer.encode(text)
        return ids

    async def dialogue(self, messages: Sequence[Message]) -> list[int]:
        """Ids of messages under the tokenizer's chat template."""
        if not self._tokenizer.chat_template:
            raise InferenceInputError(
                f"tokenizer {self._name!r} has no chat template, so a dialogue cannot be counted; "
                "name the tokenizer of the model that the server runs"
            )
        text = self._tokenizer.apply_chat_template(
            turns(messages), tokenize=False, add_generation_prompt=True
        )
        return await self.bare(text)

    async def bare(self, text: str) -> list[int]:
        """Ids of a text without special tokens."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids


def turns(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Messages as the protocol writes them."""
    return [{"role": message.role, "content": message.content} for message in messages]


async def prompt_ids(tokens: Tokens, request: Request) -> list[int]:
    """Prompt ids of a request, before any truncation."""
    if request.token_ids is not None:
        return list(request.token_ids)
    if request.messages is not None:
        return await tokens.dialogue(request.messages)
    assert request.prompt is not None, "a request has exactly one kind of prompt"
    return await tokens.prompt(request.prompt)
