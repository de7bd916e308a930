"""Speculative decoding: drafters propose, `verify` alone accepts."""

from inference.speculative.base import Drafter, Proposal, Proposer, Start, Turn
from inference.speculative.spec import build, name_of, parse, spell
from inference.speculative.table import DRAFTERS

__all__ = [
    "DRAFTERS",
    "Drafter",
    "Proposal",
    "Proposer",
    "Start",
    "Turn",
    "build",
    "name_of",
    "parse",
    "spell",
]
