"""Log-probabilities of produced tokens: what the model itself thought of them."""

from __future__ import annotations

from typing import Any

import torch

from inference.requests import TokenLogprob


def token_logprob(tokenizer: Any, logits: torch.Tensor, token: int, top: int) -> TokenLogprob:
    """Entry of a token chosen after float32 logits [vocabulary], with the `top` most probable.

    The logits are the model's own, before penalty, temperature, filters and grammar. Tokens of
    no probability are left out of the top.
    """
    logprobs = torch.log_softmax(logits.double(), dim=-1)
    best = torch.topk(logprobs, min(top, len(logprobs)))
    ranked = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return TokenLogprob(
        text=_spelt(tokenizer, token),
        logprob=float(logprobs[token]),
        id=token,
        top=tuple((_spelt(tokenizer, i), p) for i, p in ranked if p > -torch.inf),
    )


def _spelt(tokenizer: Any, token: int) -> str:
    """The text of one token, control tokens included; bytes that are no character are U+FFFD."""
    text: str = tokenizer.decode([token], clean_up_tokenization_spaces=False)
    return text
