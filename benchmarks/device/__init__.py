"""What a ranker costs a device: starting, observing, memory, room on disk; see `__main__`."""
