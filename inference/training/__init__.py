"""Gradients through the models: adapters and heads trained from examples or while generating.

Importing this package loads nothing; its modules need torch, and adapters are trained by peft.
"""
