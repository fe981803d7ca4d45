"""What a ranking goes by, in words for people, in English; who speaks to them in another language has the `Reason`s.

Times are days in the zone of whoever asks. Items are called by their ids, unless the app has names for them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo

from pocketrank.bundle import ItemId
from pocketrank.encoding import top_items
from pocketrank.reasons import Reason
from pocketrank.segments import LAST_S, FixedWindow, Policy
from pocketrank.situation import Situation
from pocketrank.times import EPOCH

MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
WINDOWS = {3600: "hour", 86_400: "day", 604_800: "week"}
DAY_S = 86_400
FIRST_S = -62_135_596_800  # the year 1, before which there are no dates
SHOWN = 8


@dataclass(frozen=True)
class Explanation:
    """Why one item has the score it has.

    Attributes:
        item: its id.
        score: its score.
        basis: what there was to rank it from, in words.
        reasons: the parts of the score, the greatest first; they sum to it.
        words: what each of them is, in the same order, such as "your basket of 12 May: milk, bread".
    """

    item: ItemId
    score: float
    basis: str
    reasons: tuple[Reason, ...]
    words: tuple[str, ...]

    @property
    def lines(self) -> tuple[str, ...]:
        """The parts that matter most, whichever way, the greatest first; the others as one."""
        by_size = sorted(range(len(self.reasons)), key=lambda place: -abs(self.reasons[place].added))
        shown = sorted(by_size[:SHOWN])
        rest = [self.reasons[place].added for place in by_size[SHOWN:]]
        told = [f"{self.reasons[place].added:+.2f}  {self.words[place]}" for place in shown]
        return (*told, *([f"{sum(rest):+.2f}  {len(rest)} others together"] if rest else []))

    def __str__(self) -> str:
        return "\n".join([f"{self.item}: {self.score:.2f}, from {self.basis}", *self.lines])


def explanation(
    situation: Situation,
    row: int,
    score: float,
    reasons: Sequence[Reason],
    basis: str,
    noun: str | None,
    name: Callable[[ItemId], str],
    now_s: int,
    zone: tzinfo | None,
) -> Explanation:
    """Put the reasons of one item into words.

    Args:
        situation: what they were worked out from.
        row: of the item.
        score: of the item.
        reasons: of the item.
        basis: as `basis` says it.
        noun: what a segment is to people, such as "basket"; None goes by the policy.
        name: what people call an item.
        now_s: the time of the question.
        zone: that days are told in; None for the device's, with summer time as it was on each day.
    """
    called = noun or _noun(situation.bundle.policy)
    this_year = at(now_s, zone).year

    def day(seconds: int) -> str:
        day = at(seconds, zone)
        return f"{day.day} {MONTHS[day.month - 1]}" + (f" {day.year}" if day.year != this_year else "")

    def told(reason: Reason) -> str:
        match reason.kind:
            case "segment":
                return f"{_of(called, day(reason.start_s), day(reason.end_s))}{_items(reason.items, name)}"
            case "live":
                return f"this {called} so far{_items(_live_items(situation), name)}"
            case "memory":
                return _remembered(situation, row, day)
            case "base":
                return "what it is to anybody"
        return "what these are worth together only"

    item = situation.bundle.items.ids[row]
    return Explanation(item, score, basis, tuple(reasons), tuple(told(reason) for reason in reasons))


def at(seconds: int, zone: tzinfo | None = None) -> datetime:
    """A time in a zone, the device's where None; the nearest that a calendar of four digits has in every zone."""
    return (EPOCH + timedelta(seconds=min(max(seconds, FIRST_S + DAY_S), LAST_S - 2 * DAY_S))).astimezone(zone)


def basis(there: Sequence[str]) -> str:
    """What a ranking went by, of `Ranking.basis`, in words."""
    if list(there) == ["popularity"]:
        return "popularity alone: nothing is known of this user"
    names = {"segments": "past segments", "live": "the open segment", "memory": "item memory"}
    *others, last = (names.get(name, name) for name in there)
    return f"{', '.join(others)} and {last}" if others else last


def _noun(policy: Policy) -> str:
    if isinstance(policy, FixedWindow):
        return WINDOWS.get(policy.window_s, "session")
    return "visit" if policy.kind in ("session_gap", "adaptive") else "session"


def _of(noun: str, first: str, last: str) -> str:
    """A segment by its days; one of several days, a merged one often, by its first and last."""
    return f"your {noun} of {last}" if first == last else f"from {first} to {last}"


def _live_items(situation: Situation) -> list[ItemId]:
    live, ids = situation.live, situation.bundle.items.ids
    return [ids[row] for row in top_items(live.rows, live.score, situation.bundle.sizes.T) if row >= 0]


def _remembered(situation: Situation, row: int, day: Callable[[int], str]) -> str:
    memory = situation.memory
    place = memory.items.searchsorted(row)
    if place == len(memory.items) or memory.items[place] != row:
        return "nothing that you did with it before"
    count = round(float(memory.counts[place]))
    return f"{'once' if count == 1 else f'{count:,} times'} before, last on {day(int(memory.last_s[place]))}"


def _items(items: Sequence[ItemId], name: Callable[[ItemId], str]) -> str:
    return f": {', '.join(map(name, items))}" if items else ""
