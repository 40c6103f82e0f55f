"""The targets: one file each. A target knows where services stand, how its files are quoted and what they are called."""
