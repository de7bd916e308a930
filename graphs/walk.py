"""Walks over a graph: neighbours by hops, and paths between two entities."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from networkx import MultiDiGraph

WORK = 200_000
"""Facts looked at in one walk, at most."""


class Direction(StrEnum):
    """Which way facts are followed: from head to tail, from tail to head, or both."""

    OUT = "out"
    IN = "in"
    BOTH = "both"


@dataclass(frozen=True, slots=True)
class Leg:
    """One fact on a walk: its row, the entity that it leads to, and whether that is its tail."""

    row: int
    to: str
    forward: bool


@dataclass(frozen=True, slots=True)
class Near:
    """A fact and how many hops from the start its nearer end is, from 1 for the start's own."""

    row: int
    hop: int


class Walker:
    """Walks over one graph with the same relations, direction and budget of work.

    `complete` is False once a limit has cut a walk short.
    """

    def __init__(
        self,
        graph: MultiDiGraph[str],
        relations: Collection[str] | None = None,
        direction: Direction = Direction.BOTH,
        work: int = WORK,
    ) -> None:
        self.graph = graph
        self.relations = relations
        self.direction = direction
        self.complete = True
        self._left = work

    def legs(self, entity: str, *, back: bool = False) -> list[Leg]:
        """The facts that lead on from `entity`, by row; `back` turns the direction round."""
        found: dict[int, Leg] = {}
        ways = {Direction.OUT: (True,), Direction.IN: (False,), Direction.BOTH: (True, False)}
        for forward in ways[self.direction]:
            outgoing = forward != back
            edges = self.graph.succ if outgoing else self.graph.pred
            for other, parallel in edges[entity].items():
                for relation, data in parallel.items():
                    if self.relations is None or relation in self.relations:
                        found.setdefault(data["row"], Leg(data["row"], other, outgoing))
        self._left -= len(found)
        return [found[row] for row in sorted(found)]

    def near(self, start: str, hops: int, limit: int) -> list[Near]:
        """Facts within `hops` of an entity, nearest first, then by row; at most `limit`."""
        found: dict[int, int] = {}
        seen, border = {start}, [start]
        for hop in range(1, hops + 1):
            level: dict[int, str] = {}
            for entity in border:
                if self._left <= 0:
                    self.complete = False
                    break
                for leg in self.legs(entity):
                    if leg.row not in found:
                        level.setdefault(leg.row, leg.to)
            found |= dict.fromkeys(sorted(level), hop)
            border = sorted(set(level.values()) - seen)
            seen.update(border)
            if len(found) >= limit:
                if len(found) > limit or (border and hop < hops):
                    self.complete = False
                break
        return [Near(row, hop) for row, hop in found.items()][:limit]

    def paths(
        self, start: str, goal: str, hops: int, limit: int, *, shortest: bool = False
    ) -> list[list[Leg]]:
        """Paths that visit no entity twice, the shortest first, then by rows; at most `limit`.

        A path has at most `hops` facts; `shortest` leaves out all that are longer than the best.
        Every step is checked against the distance to the goal, so that few lead nowhere.
        """
        distance = self._distances(goal, hops)
        if start not in distance:
            return []
        found: list[list[Leg]] = []
        longest = distance[start] if shortest else hops
        for length in range(distance[start], longest + 1):
            for path in self._of_length(start, goal, length, distance):
                if len(found) == limit:
                    self.complete = False
                    return found
                found.append(path)
        return found

    def _of_length(
        self, start: str, goal: str, length: int, distance: dict[str, int]
    ) -> Iterator[list[Leg]]:
        """Paths of exactly `length` facts, depth first, in the order of rows."""
        path: list[Leg] = []
        visited = {start}
        open_legs = [iter(self.legs(start))]
        while open_legs:
            leg = next(open_legs[-1], None)
            if leg is None:
                open_legs.pop()
                if path:
                    visited.discard(path.pop().to)
                continue
            left = length - len(path) - 1
            if leg.to in visited or distance.get(leg.to, length + 1) > left:
                continue
            if leg.to == goal:
                if left == 0:
                    yield [*path, leg]
                continue
            if self._left <= 0:
                self.complete = False
                return
            path.append(leg)
            visited.add(leg.to)
            open_legs.append(iter(self.legs(leg.to)))

    def _distances(self, goal: str, hops: int) -> dict[str, int]:
        """Hops from every entity within reach to the goal."""
        distance, border = {goal: 0}, [goal]
        for hop in range(1, hops + 1):
            reached = []
            for entity in border:
                if self._left <= 0:
                    self.complete = False
                    break
                for leg in self.legs(entity, back=True):
                    if leg.to not in distance:
                        distance[leg.to] = hop
                        reached.append(leg.to)
            border = reached
        return distance
