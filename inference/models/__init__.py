"""The model store: a name becomes a local folder of verified safetensors.

A name is one of the catalogue (`default`, `minilm`), a path to a checkpoint folder, or a hub id.
"""

from inference.models.catalog import CATALOG, WheelModel
from inference.models.store import ModelEntry, list_models, models_home, resolve
from inference.models.tokenizer import load_tokenizer

__all__ = [
    "CATALOG",
    "ModelEntry",
    "WheelModel",
    "list_models",
    "load_tokenizer",
    "models_home",
    "resolve",
]
