"""The targets, one module each: addresses and paths of services, and the names and quoting of the target's files."""
