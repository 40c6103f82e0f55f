"""The targets: one file each. A target knows where services stand, and how its files are quoted and called."""
