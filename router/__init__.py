"""Runs in the Router: gating, dispatch plan, combine, replica choice."""
