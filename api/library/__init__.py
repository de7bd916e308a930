"""What tenants upload: indexes, graphs and workflows, by name.

`Library(root)` keeps them in folders; `library_home()` says where they lie by default.
"""

from api.library.errors import LibraryError, LibraryInputError
from api.library.places import library_home
from api.library.quota import Quota
from api.library.store import Library

__all__ = ["Library", "LibraryError", "LibraryInputError", "Quota", "library_home"]
