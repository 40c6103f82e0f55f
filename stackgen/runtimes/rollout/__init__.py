"""Changes to a running stack: drift, rolling updates, scaling, and the downtime they cost."""
