"""The checks themselves: one module each, and the table that orders them."""
