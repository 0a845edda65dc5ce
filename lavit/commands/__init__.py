"""The commands that have no other home, one module each."""
