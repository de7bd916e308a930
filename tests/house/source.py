"""The project's own Python files, and the imports that stand in them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("api", "workflows", "agents", "graphs", "retrieval", "inference")
"""The six packages in import order: each may import those to its right."""

ATTRIBUTE = re.compile(r"([a-z_][\w.]*):[A-Za-z_]\w*")
"""A `module:attribute` string, as the command table holds them."""


@dataclass(frozen=True)
class Import:
    """A module imported in a line of a file; module None means that it cannot be read off."""

    module: str | None
    line: int


@dataclass(frozen=True)
class Source:
    """One Python file and its dotted module name."""

    path: Path
    module: str
    text: str

    @classmethod
    def read(cls, path: Path) -> Source:
        """The file at `path`, named as it is imported from the project's root."""
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        return cls(path, name, path.read_text(encoding="utf-8"))

    @property
    def package(self) -> str:
        """The top-level package."""
        return self.module.split(".")[0]

    @property
    def place(self) -> str:
        """The path for messages."""
        return self.path.relative_to(ROOT).as_posix()

    @cached_property
    def tree(self) -> ast.Module:
        """The parsed file."""
        return ast.parse(self.text, filename=str(self.path))

    def imports(self) -> Iterator[Import]:
        """Every import of the file, wherever it stands and however it is written."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from (Import(alias.name, node.lineno) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = self._absolute("." * node.level + (node.module or ""))
                # `from package import module` imports the module too.
                yield from (Import(f"{base}.{alias.name}", node.lineno) for alias in node.names)
            elif isinstance(node, ast.Call) and _callee(node) in {"import_module", "__import__"}:
                yield Import(self._named(node), node.lineno)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                match = ATTRIBUTE.fullmatch(node.value)
                if match and match[1].split(".")[0] in PACKAGES:
                    yield Import(match[1], node.lineno)

    def _named(self, call: ast.Call) -> str | None:
        first = call.args[0] if call.args else None
        if isinstance(first, ast.Constant) and isinstance(first.value, str):
            return self._absolute(first.value)
        return None

    def _absolute(self, name: str) -> str:
        """`name` with its leading dots resolved against this module."""
        level = len(name) - len(name.lstrip("."))
        if level == 0:
            return name
        parts = self.module.split(".")
        keep = len(parts) - level + (self.path.name == "__init__.py")
        return ".".join([*parts[:keep], *filter(None, [name.lstrip(".")])])


def _callee(call: ast.Call) -> str:
    """Last part of the called name: `import_module` for `importlib.import_module(...)`."""
    if isinstance(call.func, ast.Attribute):
        return call.func.attr
    return call.func.id if isinstance(call.func, ast.Name) else ""


def sources(*folders: str) -> list[Source]:
    """The files of the given top-level folders, of all six packages by default."""
    paths = (path for folder in folders or PACKAGES for path in (ROOT / folder).rglob("*.py"))
    return [Source.read(path) for path in sorted(paths)]
