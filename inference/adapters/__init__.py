"""LoRA adapters in memory: read, checked, attached by name, applied to the rows of a step.

Importing this package loads nothing; `lora`, `batch` and `registry` need torch.
"""
