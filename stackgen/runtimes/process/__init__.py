"""Stacks as local processes, supervised without a Docker engine."""
