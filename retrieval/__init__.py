"""Documents to passages to ranked hits.

Importing this package is cheap; torch, faiss and bm25s are loaded only when an index is opened.
"""

from retrieval.errors import RetrievalError, RetrievalInputError
from retrieval.retriever import Hit, Passage, Retriever, RetrieverConfig

__all__ = [
    "Hit",
    "Passage",
    "RetrievalError",
    "RetrievalInputError",
    "Retriever",
    "RetrieverConfig",
]
