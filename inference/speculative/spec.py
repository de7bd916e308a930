"""A drafter by its name and options, as text (`lookahead:branch_length=8`) or as a mapping."""

from __future__ import annotations

from inference.errors import DrafterInputError
from inference.named import Methods
from inference.speculative.base import Drafter
from inference.speculative.table import DRAFTERS

METHODS: Methods[Drafter] = Methods("drafter", DRAFTERS, DrafterInputError)

parse = METHODS.parse
build = METHODS.build
name_of = METHODS.name_of
spell = METHODS.spell
