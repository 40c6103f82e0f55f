"""The runtimes start what a plan says: `compose` in containers, `process` as local programs. Only they start any."""
