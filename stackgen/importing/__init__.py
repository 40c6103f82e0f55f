"""Turns what people have (commands, Compose files, units, Helm values) into a stack file, and loses no word silently.

The stages: `source.py` recognizes the kind of source; `shell.py`, `docker_cli.py`, `compose_file.py`, `systemd.py` and
`helm_values.py` read it into containers (`container.py`); `programs.py` finds the engine in each container;
`vllm_flags.py`, `fastchat_flags.py`, `llamacpp_flags.py` and `settings.py` fill the fields of a model; `assemble.py`
builds the stack, and `stack_file.py` writes it.
`ledger.py` has one item for each word of the source, and each item ends with an outcome: no word is lost silently.
"""
