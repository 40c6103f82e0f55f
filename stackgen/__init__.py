"""stackgen: Docker Compose stacks that serve language models, started and proven to work."""

__version__ = "0.1.0"
