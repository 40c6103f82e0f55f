"""Observe machines and running stacks: facts for doctor, evidence for diagnose, observers for the check."""
