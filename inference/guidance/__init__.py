"""Guidance: methods that combine the logits of several contexts."""

from inference.guidance.base import Context, Guidance
from inference.guidance.context_aware import ContextAware

GUIDANCE: dict[str, type[Guidance]] = {
    "context_aware": ContextAware,
}

__all__ = ["GUIDANCE", "Context", "ContextAware", "Guidance"]
