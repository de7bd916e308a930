"""Formal languages that an answer must belong to: JSON Schema, regular expressions, EBNF.

`spec` and `schema` are light; `compiler` and `matcher` load xgrammar and torch.
"""

from inference.grammar.spec import Grammar

__all__ = ["Grammar"]
