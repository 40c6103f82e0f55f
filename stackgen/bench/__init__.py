"""Measurements of a stack under load: what a load generator measured, where a limit breaks, and the page about it."""
