"""Verbs about flows: plan, predict, submit, preflight, drill."""
