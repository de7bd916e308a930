"""The engine of this project: transformers models under an own step loop."""
