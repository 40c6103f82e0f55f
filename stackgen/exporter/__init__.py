"""A server that checks endpoints again and again: Prometheus metrics on `/metrics`, a status page on `/`."""
