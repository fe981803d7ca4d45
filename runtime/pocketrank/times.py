"""Times: microseconds since 1970, UTC, as every table and pack counts them, and datetimes for people."""

from datetime import UTC, datetime, timedelta

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def to_us(moment: datetime) -> int:
    """Whole microseconds since 1970 of a datetime with a zone, without going through a float."""
    return (moment - EPOCH) // timedelta(microseconds=1)


def from_us(time_us: int) -> datetime:
    """The datetime, in UTC, of microseconds since 1970."""
    return EPOCH + timedelta(microseconds=int(time_us))


def moment(text: str) -> datetime:
    """A time typed on the command line: ISO 8601, UTC unless it has a zone.

    Raises:
        argparse.ArgumentTypeError: not a time.
    """
    try:
        found = datetime.fromisoformat(text)
        return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        import argparse  # noqa: PLC0415  # a device has no command line

        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 2026-11-23T12:00:00") from None
