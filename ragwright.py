"""The `ragwright` command: makes sure that the six packages are ours, then hands over to `api`.

This check cannot live inside one of the six: where another distribution ships a package of the
same name, Python would load that one instead and never reach the check.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import sys
from pathlib import Path

PACKAGES = ("api", "workflows", "agents", "graphs", "retrieval", "inference")

CLAIM = re.compile(rf'^"?({"|".join(PACKAGES)})(?=/|\.py,|\.[\w-]+\.so,|\r?$)', re.MULTILINE)
"""One of our names at the start of a line of top_level.txt or RECORD."""


def claims() -> dict[str, set[str]]:
    """The six names, each with the other installed distributions whose metadata list it."""
    owners: dict[str, set[str]] = {}
    for distribution in importlib.metadata.distributions():
        listing = distribution.read_text("top_level.txt") or distribution.read_text("RECORD") or ""
        names = set(CLAIM.findall(listing))
        if names and distribution.name.lower() != "ragwright":
            for name in names:
                owners.setdefault(name, set()).add(f"{distribution.name} {distribution.version}")
    return owners


def strangers() -> dict[str, str]:
    """The six names that Python would not load from beside this file, each with its place."""
    home = Path(__file__).resolve().parent
    found = {}
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        place = spec and (spec.origin or next(iter(spec.submodule_search_locations or ()), None))
        if not place:
            found[name] = "nowhere"
        elif Path(place).resolve().parent != home / name:
            found[name] = place
    return found


def conflict() -> str | None:
    """One line naming the distribution that shares a package name with us, or None.

    Both checks are needed: a foreign package may come earlier on the path, or its files may
    have been installed into the very folder that holds ours.
    """
    owners, elsewhere = claims(), strangers()
    parts = []
    for name in PACKAGES:
        others = ", ".join(sorted(owners.get(name, ())))
        if name in elsewhere:
            whose = f"distribution {others}" if others else "no installed distribution"
            parts.append(f"package {name!r} is found at {elsewhere[name]}, which is of {whose}")
        elif others:
            parts.append(f"package {name!r} is also shipped by distribution {others}")
    if not parts:
        return None
    return "; ".join(parts) + "; install ragwright in an environment of its own"


def main() -> None:
    """Run the command line; exit status 2 if our packages are not ours alone."""
    if message := conflict():
        print(f"ragwright: {message}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    from api.cli import main as run

    run()


if __name__ == "__main__":
    main()
