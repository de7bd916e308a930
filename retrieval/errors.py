"""Errors of the retrieval layer; each names the value, the place and the remedy."""


class RetrievalError(Exception):
    """Something failed while reading documents or an index; `code` is stable for programs."""

    code = "retrieval_error"


class RetrievalInputError(RetrievalError):
    """Documents, an index or a query that cannot be used as they are; nothing was changed."""

    code = "bad_input"
