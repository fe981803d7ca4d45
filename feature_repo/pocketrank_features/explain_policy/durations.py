"""Lengths of time as people say them, in a few characters."""

_UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def lasting(time_us: float | None) -> str:
    """A length of time in its largest unit of which it holds one: 45 s, 1.5 h, 211 d; - for None."""
    if time_us is None:
        return "-"
    seconds = time_us / 10**6
    for each, unit in _UNITS:
        if seconds >= each:
            number = seconds / each
            return f"{number:.1f}".removesuffix(".0") + f" {unit}" if number < 9.95 else f"{number:.0f} {unit}"
    return "0 s" if seconds == 0 else "<1 s"
