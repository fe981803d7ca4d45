"""What the runtime costs a device; see `__main__`."""
