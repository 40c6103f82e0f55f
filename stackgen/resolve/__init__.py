"""Turns a validated stack file into a plan: GPUs, names, ports, engines, add-ons."""
