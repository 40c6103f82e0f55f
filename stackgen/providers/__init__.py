"""Which servers a command talks to: providers, clouds, named endpoints, and a stack's own endpoints."""
