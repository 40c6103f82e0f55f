"""The matrix of providers: base URL, where keys are found, what they support."""
