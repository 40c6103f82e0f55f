"""Change a running stack: find drift, update one replica at a time, scale, and report the downtime first."""
