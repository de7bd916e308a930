"""Evaluation: workflows over a set of questions, scored, with intervals and a manifest."""
