"""Stacks in containers: Docker Compose, the running gateway, certificates, the exporter's image."""
