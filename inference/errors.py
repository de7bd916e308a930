"""Errors of the inference layer; each names the value, the place and the remedy."""


class InferenceError(Exception):
    """Something failed while loading a model or decoding; `code` is stable for programs."""

    code = "inference_error"


class InferenceInputError(InferenceError):
    """The caller asked for something that cannot be done; nothing was computed."""

    code = "bad_input"


class UnknownName(InferenceInputError):
    """A model, engine or option name that no table holds."""

    code = "unknown_name"


class PromptTooLong(InferenceInputError):
    """The prompt does not fit the context and the request does not allow truncation."""

    code = "prompt_too_long"


class ModelUnavailable(InferenceError):
    """A model could not be fetched, verified or converted."""

    code = "model_unavailable"


class NoChatTemplate(InferenceInputError):
    """Messages were given to a model that has no chat template."""

    code = "no_chat_template"


class GrammarInputError(InferenceInputError):
    """A grammar that cannot be compiled, or a schema that cannot be held to exactly."""

    code = "bad_grammar"


class GrammarTooSlow(GrammarInputError):
    """A grammar whose compilation took longer than its limit."""

    code = "grammar_too_slow"


class GrammarDeadEnd(InferenceError):
    """A grammar led to a place from which no text can be finished."""

    code = "grammar_dead_end"


class BrokenLogits(InferenceError):
    """A model computed numbers from which no next token can be chosen."""

    code = "broken_logits"


class TapFailed(InferenceError):
    """The sink of a request's taps raised."""

    code = "tap_failed"


class RequestFailed(InferenceError):
    """A request could not be finished; `code` is that of what stopped it."""

    def __init__(self, message: str, code: str) -> None:
        self.code = code
        super().__init__(message)


class Unsupported(InferenceInputError):
    """The engine cannot do this, or its server does not say that it can."""

    code = "unsupported"


class AccessDenied(InferenceInputError):
    """A server wants a key, or refuses the one it was given."""

    code = "access_denied"


class ServerUnavailable(InferenceError):
    """A model server cannot be reached, fails, or broke off in mid-answer."""

    code = "server_unavailable"
    status: int | None = None
    """What the server answered with, where it answered."""


class ServerTimeout(ServerUnavailable):
    """A model server was silent for longer than the engine's `timeout`."""

    code = "server_timeout"


class AdapterInputError(InferenceInputError):
    """An adapter that cannot be read, or that does not fit the model."""

    code = "bad_adapter"


class MethodInputError(InferenceInputError):
    """A method that no table has, or an option it cannot take.

    `option` names what is wrong, and with `unknown` it is the name itself.
    """

    def __init__(self, message: str, option: str | None = None, *, unknown: bool = False) -> None:
        self.option = option
        self.unknown = unknown
        super().__init__(message)


class KVInputError(MethodInputError):
    """A KV-cache policy that does not exist, or an option it cannot take."""

    code = "bad_kv_policy"


class DrafterInputError(MethodInputError):
    """A drafter that does not exist, an option it cannot take, or what does not fit the model."""

    code = "bad_drafter"


class AdapterInUse(InferenceInputError):
    """An adapter that requests in flight still need."""

    code = "adapter_in_use"
