"""The table of node kinds: YAML name -> class."""

from __future__ import annotations

from workflows.nodes.base import Node

NODES: dict[str, type[Node]] = {}
