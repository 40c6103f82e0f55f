"""Doctor: hosts and stacks as data, each with one fault."""
