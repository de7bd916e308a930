"""Workflow files in YAML, compiled to LangGraph and run with budgets and checkpoints."""
