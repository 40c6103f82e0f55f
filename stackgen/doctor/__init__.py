"""Preflight checks: problems that would keep a stack from starting, found before anything is started."""
