"""Stacks in a Kubernetes cluster: kubectl applies, observes and deletes what `stackgen render` wrote."""
