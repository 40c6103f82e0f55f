"""Why a stack failed: one cause, its evidence, one fix."""
