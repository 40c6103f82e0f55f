"""Run stacks as local processes under a supervisor of their own, without a Docker engine."""
