"""Taps: what a request may see of its own forward passes; off unless asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from inference.errors import InferenceInputError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Tapped:
    """What one step showed of one request, for the tokens at `positions`.

    `hidden[i]` [tokens, hidden] is the input of layer i, or the final normed state for i = number
    of layers. `queries`, `keys`, `values` [tokens, heads, head_dim] are those before rotation.
    `attention[i]` [heads, tokens, entries] are the weights after softmax, of those tokens alone
    that stand at `Taps.attention_from` or behind it; a step without such tokens has none.
    """

    positions: tuple[int, ...]
    hidden: Mapping[int, Tensor] = field(default_factory=dict)
    queries: Mapping[int, Tensor] = field(default_factory=dict)
    keys: Mapping[int, Tensor] = field(default_factory=dict)
    values: Mapping[int, Tensor] = field(default_factory=dict)
    attention: Mapping[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Choice:
    """Logits [vocabulary], float32, from which the token at `position` was chosen.

    `raw` are the model's, `processed` those after guidance, grammar, penalties and filters.
    """

    position: int
    raw: Tensor
    processed: Tensor
    token: int


@dataclass(frozen=True, slots=True)
class Taps:
    """Which layers to show; `sink` is called in the step thread and must be quick.

    `hidden` are 0 to the number of layers, `heads` and `attention` 0 to one less; negative numbers
    count from the end. Rows of attention of positions before `attention_from` are not computed:
    those of a long prompt are the largest thing that taps can show. With `logits` the sink also
    gets a `Choice` per token. The prompt of a request with taps is computed anew, so that all of
    it is shown.
    """

    sink: Callable[[Tapped | Choice], object]
    hidden: tuple[int, ...] = ()
    heads: tuple[int, ...] = ()
    attention: tuple[int, ...] = ()
    logits: bool = False
    attention_from: int = 0

    def resolved(self, layers: int) -> Taps:
        """The same with layer numbers counted from 0; InferenceInputError for one there is not."""
        return Taps(
            self.sink,
            _resolve("hidden", self.hidden, layers + 1),
            _resolve("heads", self.heads, layers),
            _resolve("attention", self.attention, layers),
            self.logits,
            self.attention_from,
        )


def _resolve(name: str, numbers: tuple[int, ...], count: int) -> tuple[int, ...]:
    for number in numbers:
        if not -count <= number < count:
            raise InferenceInputError(
                f"tap {name} names layer {number}; this model has {-count} to {count - 1}"
            )
    return tuple(number % count for number in numbers)
