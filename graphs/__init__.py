"""Knowledge graphs: stores, entity linking, neighbour expansion, multi-hop paths.

Importing this package is cheap; networkx and rdflib are loaded when a graph is read or walked.
"""
