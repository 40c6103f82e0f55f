"""Observes machines and running stacks: collects facts for doctor, evidence for diagnose, and states for the check."""
