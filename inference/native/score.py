"""Log-probabilities of given continuations; the prompt they share is read once."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from inference.native.decode import PREFILL_TOKENS, Job, prefill
from inference.native.model import Model, entries
from inference.native.prefix import PrefixCache
from inference.requests import Score


def score(
    model: Model, prefixes: PrefixCache, job: Job, continuations: Sequence[Sequence[int]]
) -> list[Score]:
    """One Score per continuation (token ids, none empty), in natural logarithms."""
    state = prefill(model, prefixes, job)
    shared = entries(state.cache)
    if model.reusable:
        prefixes.store(job.prompt, shared)
    scores = []
    for ids in continuations:
        # The prompt's entries are copied for each continuation; a model whose state cannot be
        # copied reads the prompt again.
        cache = model.cache(shared) if model.reusable else prefill(model, prefixes, job).cache
        logprobs = [_logprob(state.logits[None], ids[:1])]
        for start in range(0, len(ids) - 1, PREFILL_TOKENS):
            piece = ids[start : min(start + PREFILL_TOKENS, len(ids) - 1)]
            logits = model.forward(piece, cache, keep=len(piece))
            logprobs.append(_logprob(logits, ids[start + 1 : start + 1 + len(piece)]))
        scores.append(Score(tuple(ids), tuple(torch.cat(logprobs).tolist())))
    return scores


def _logprob(logits: torch.Tensor, ids: Sequence[int]) -> torch.Tensor:
    """Log-probability of `ids[i]` under row i of `logits` [len(ids), vocabulary], on the CPU."""
    wanted = torch.tensor(list(ids), device=logits.device)[:, None]
    return torch.log_softmax(logits, dim=-1).gather(1, wanted)[:, 0].cpu()
