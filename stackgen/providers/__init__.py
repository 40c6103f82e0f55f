"""The servers that a command uses: providers, clouds, named endpoints, and a stack's own endpoints."""
