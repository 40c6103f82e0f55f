"""The target Kubernetes: manifests from a plan, and the rules that no schema checks."""
