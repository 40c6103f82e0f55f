"""Tests of doctor: machines and stacks as data, each with one fault."""
