"""From a validated stack file to a plan: GPUs, names, ports, engines, add-ons."""
