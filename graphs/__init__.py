"""Knowledge graphs: stores, entity linking, neighbour expansion, multi-hop paths."""
