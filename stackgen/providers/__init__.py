"""Which server a command talks to: providers, clouds, endpoints by name, and a stack's own endpoints."""
