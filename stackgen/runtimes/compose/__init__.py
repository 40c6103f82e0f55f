"""Stacks in containers: Docker Compose, the running gateway, TLS certificates and the exporter's image."""
