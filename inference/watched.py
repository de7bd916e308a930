"""A generation with what its model attended to: taps of all layers, reduced to numpy arrays.

It goes on from tokens that were kept, so that a method can take a generation back to a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from inference.engine import Watchable
from inference.errors import Unsupported
from inference.requests import FinishReason, Output, Request
from inference.taps import Choice, Tapped, Taps

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Watched:
    """What one generation showed; positions count from the first token of the prompt.

    `ids` and `pieces` are all tokens: prompt, kept ones, and those produced from position `start`
    on. `attention` [layers, heads, rows, tokens], float32, are the weights after softmax of the
    positions `start` to the last but one: the last token was never read, so it has no row.
    `states` [tokens - 1, hidden] are sums over layers 0 (embedding) to L (final normed state) of
    hidden states, weighted as asked for. `probabilities` [produced] are those of the tokens under
    the model. `context_length` is that of the engine, in tokens.
    """

    ids: tuple[int, ...]
    pieces: tuple[str, ...]
    start: int
    attention: NDArray[np.float32]
    states: NDArray[np.float32]
    probabilities: NDArray[np.float64]
    finish_reason: FinishReason
    context_length: int

    @property
    def produced(self) -> tuple[int, ...]:
        """The tokens of this generation alone."""
        return self.ids[self.start :]


class Watch:
    """A request with taps, and what they show; `weights` [L + 1] mix the hidden states.

    Raises Unsupported for an engine that cannot be watched.
    """

    def __init__(
        self, engine: Any, request: Request, kept: Sequence[int], weights: Sequence[float] | None
    ) -> None:
        if not isinstance(engine, Watchable):
            raise Unsupported(
                f"engine {type(engine).__name__} shows no attention; use the native engine"
            )
        self.engine = engine
        self.ids = [*engine.encode(request), *kept]
        layers = engine.layers
        given = [0.0] * layers + [1.0] if weights is None else list(weights)
        if len(given) != layers + 1:
            raise Unsupported(
                f"{len(given)} weights of hidden states were given for {layers} layers; give "
                f"{layers + 1}"
            )
        self._weights = given
        self._states: dict[int, NDArray[np.float32]] = {}
        self._rows: dict[int, list[NDArray[np.float32]]] = {}
        self._probabilities: list[float] = []
        self.request = replace(
            request,
            messages=None,
            prompt=None,
            token_ids=self.ids,
            taps=Taps(
                self._see,
                hidden=tuple(at for at, weight in enumerate(given) if weight > 0),
                attention=tuple(range(layers)),
                logits=True,
                attention_from=len(self.ids),
            ),
        )

    def _see(self, seen: Tapped | Choice) -> None:
        if isinstance(seen, Choice):
            raw = seen.raw.double()
            self._probabilities.append(float((raw[seen.token] - raw.logsumexp(-1)).exp()))
            return
        mixed = sum(state.float() * self._weights[at] for at, state in seen.hidden.items())
        for position, state in zip(seen.positions, mixed.cpu().numpy(), strict=True):
            self._states[position] = state
        behind = [at for at in seen.positions if at >= len(self.ids)]
        layers = [seen.attention[at].cpu().numpy() for at in sorted(seen.attention)]
        for row, position in enumerate(behind):
            self._rows[position] = [layer[:, row] for layer in layers]

    def result(self, output: Output) -> Watched:
        """What was shown of the finished generation."""
        ids = (*self.ids, *output.token_ids)
        rows = max(len(output.token_ids) - 1, 0)
        heads = len(next(iter(self._rows.values()))[0]) if self._rows else 0
        attention = np.zeros((self.engine.layers, heads, rows, len(ids)), np.float32)
        for row in range(rows):
            for layer, weights in enumerate(self._rows[len(self.ids) + row]):
                attention[layer, :, row, : weights.shape[1]] = weights
        return Watched(
            ids,
            tuple(self.engine.pieces(ids)),
            len(self.ids),
            attention,
            self._mixed(len(ids) - 1),
            np.array(self._probabilities[: len(output.token_ids)]),
            output.finish_reason,
            self.engine.context_length,
        )

    def _mixed(self, tokens: int) -> NDArray[np.float32]:
        """The states of the first tokens; zeros where a deadline came before they were read."""
        width = len(next(iter(self._states.values()))) if self._states else 0
        found = np.zeros((tokens, width), np.float32)
        for at, state in self._states.items():
            if at < tokens:
                found[at] = state
        return found
