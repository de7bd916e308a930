"""Guard against another distribution that ships one of our top-level package names."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path

PACKAGES = ("api", "workflows", "agents", "graphs", "retrieval", "inference")


def foreign_packages() -> str | None:
    """A message naming the package that Python would load from elsewhere, and its distribution.

    Compares where each of the six packages would be found, which costs next to nothing; the
    installed distributions are read only when one of them is not ours.
    """
    home = Path(__file__).resolve().parent.parent
    strangers = {name: place for name in PACKAGES if (place := _parent(name)) != home}
    if not strangers:
        return None
    owners = importlib.metadata.packages_distributions()
    parts = []
    for name, place in strangers.items():
        others = sorted(set(owners.get(name, [])) - {"ragwright"}) or ["an unknown distribution"]
        parts.append(
            f"package {name!r} is loaded from {place}, which belongs to {', '.join(others)}"
        )
    return "; ".join(parts) + "; install ragwright in an environment of its own"


def _parent(name: str) -> Path | None:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).resolve().parent.parent
