"""Settings with which other programs use a stack: `stackgen connect CLIENT`.

Each client is one YAML file in `recipes/`. This package reads the recipes, fills them in for a stack, and finds what
will not work. It sends no requests: `stackgen.client.attempts` does.
"""
