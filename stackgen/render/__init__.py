"""Turns a plan into files: renders templates, writes atomically, never overwrites manual edits."""
