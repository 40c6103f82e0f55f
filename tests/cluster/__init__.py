"""Tests on a real Kubernetes API server, scheduler and controller manager: `make test-cluster`."""
