"""What will keep a stack from starting, found before it is started."""
