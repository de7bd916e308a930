"""Bodies of OpenAI's protocol, with this project's additions; what is in none is refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from api.http.routes.bodies import Key, Name

ModelId = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Text = Annotated[str, StringConstraints(min_length=1)]
TokenIds = Annotated[list[int], Field(min_length=1)]
MAX_SEQUENCES = 128
"""Most prompts of a request, times its candidates."""


class Strict(BaseModel):
    """A body: no field beyond its schema, and no text where a number belongs."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Part(Strict):
    """A part of a message; only text is read."""

    type: ModelId
    text: str | None = None
    image_url: Any = None
    input_audio: Any = None
    file: Any = None
    refusal: Any = None


class Turn(Strict):
    """A message; `developer` means `system`. The last fields are there to be refused by name."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None
    name: str | None = None
    refusal: Any = None
    audio: Any = None
    annotations: Any = None
    tool_calls: Any = None
    tool_call_id: Any = None
    function_call: Any = None


class JsonSchema(Strict):
    """A schema that the answer keeps to; `strict` or not, it is kept to."""

    name: str = "answer"
    description: str | None = None
    schema_: dict[str, Any] | bool | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Strict):
    """The form of the answer: text, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StructuredOutputs(Strict):
    """What vLLM calls a grammar; exactly one."""

    json_: dict[str, Any] | bool | str | None = Field(None, alias="json")
    regex: str | None = None
    grammar: str | None = None


class StreamOptions(Strict):
    """What a stream tells besides; the second is vLLM's."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None


class Ragwright(Strict):
    """What this project adds: `extra_body={"ragwright": {...}}` of the openai client.

    For the engine: `adapters` by name, `kv` and `drafter` as `NAME:OPTION=VALUE`, `references` to
    draft from, `truncate`. For a workflow: its `inputs`, an `index` and a `graph` by name, a
    `seed`. `seconds` is a deadline for both.
    """

    adapters: list[Name] = Field(default_factory=list, max_length=16)
    kv: str | None = Field(None, min_length=1, max_length=256)
    drafter: str | None = Field(None, min_length=1, max_length=256)
    references: list[Text] = Field(default_factory=list, max_length=64)
    truncate: Literal["never", "left"] = "never"
    seconds: float | None = Field(None, gt=0)
    inputs: dict[Key, Any] = Field(default_factory=dict, max_length=64)
    index: Name | None = None
    graph: Name | None = None
    seed: int | None = Field(None, ge=0, le=2**63 - 1)


class Generation(Strict):
    """What chat and completions share."""

    model: ModelId
    max_tokens: int | None = Field(None, ge=1, le=2**31 - 1)
    temperature: float | None = Field(None, ge=0)
    top_p: float | None = Field(None, gt=0, le=1)
    n: int | None = Field(None, ge=1, le=MAX_SEQUENCES)
    seed: int | None = None
    stop: Text | Annotated[list[Text], Field(max_length=16)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    ragwright: Ragwright = Field(default_factory=Ragwright)

    # vLLM's additions, which the engine `openai` of this project sends to servers that know them.
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0)
    return_token_ids: bool | None = None
    cache_salt: str | None = None
    structured_outputs: StructuredOutputs | None = None

    # Harmless: they change nothing of the answer.
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None

    # Refused by name where they ask for something.
    frequency_penalty: Any = None
    presence_penalty: Any = None
    logit_bias: Any = None


class ChatBody(Generation):
    """A dialogue to go on with."""

    messages: list[Turn] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1, le=2**31 - 1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)

    tools: Any = None
    tool_choice: Any = None
    parallel_tool_calls: Any = None
    functions: Any = None
    function_call: Any = None
    modalities: Any = None
    audio: Any = None
    prediction: Any = None
    reasoning_effort: Any = None
    verbosity: Any = None
    web_search_options: Any = None


class CompletionBody(Generation):
    """Prompts to go on with: text or token ids, one or several."""

    prompt: (
        Text
        | TokenIds
        | Annotated[list[Text], Field(min_length=1, max_length=MAX_SEQUENCES)]
        | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_SEQUENCES)]
    )
    logprobs: int | None = Field(None, ge=0, le=20)
    prompt_logprobs: Literal[0] | None = None

    echo: Any = None
    suffix: Any = None
    best_of: Any = None


class EmbeddingBody(Strict):
    """Texts to turn into vectors."""

    model: ModelId
    input: Text | Annotated[list[Text], Field(min_length=1, max_length=2048)] | list[Any]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    user: Any = None


class TokenizeBody(Strict):
    """A text or a dialogue to count, as vLLM's /tokenize takes it."""

    model: ModelId
    prompt: str | None = None
    messages: list[Turn] | None = None
    add_special_tokens: bool = True
    add_generation_prompt: Literal[True] = True
