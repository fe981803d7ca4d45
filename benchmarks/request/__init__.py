"""What a request costs on one thread, beside what else a phone could do; see `__main__`."""
