"""What is conspicuous in the outcomes of policies: marks for a table, and sentences about the project's own policy.

Every sentence is worked out: it names the number, and where another policy or setting does better, that one's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pocketrank.config import SegmentsConfig
from pocketrank.segments import Policy, SessionGap, missing_behaviors
from pocketrank_features.explain_policy.candidates import Plateau
from pocketrank_features.explain_policy.durations import lasting
from pocketrank_features.explain_policy.outcomes import Outcome, Spread, outcome
from pocketrank_features.explain_policy.samples import Sample, counted

FULL, ONES, LIVE = 0.25, 0.3, 0.1  # shares above which they are conspicuous
REACH = 0.5  # of a history, below which it is
BETTER = 0.8  # of a share, to be told as an improvement
DOUBLINGS = 4


@dataclass(frozen=True)
class Bounds:
    """What outcomes are held against.

    Attributes:
        history_us: see `outcomes.history_us`.
    """

    history_us: Spread

    def marks(self, one: Outcome) -> set[str]:
        """Fields of an outcome that are conspicuous."""
        found = set()
        if one.candidate.policy.kind != "fixed_count" and (one.full or 0) > FULL:
            found.add("full")
        if (one.ones or 0) > ONES:
            found.add("ones")
        if one.live > LIVE:
            found.add("live")
        if one.segments and (one.reach_us.median or 0) < REACH * (self.history_us.median or 0):
            found.add("reach_us")
        return found


def verdicts(sample: Sample, settings: SegmentsConfig, outcomes: Sequence[Outcome], bounds: Bounds) -> list[str]:
    """Sentences about the project's own policy, which comes first; none where nothing is conspicuous."""
    own, others = outcomes[0], outcomes[1:]
    marks = bounds.marks(own)

    def instead(share: Callable[[Outcome], float | None]) -> str:
        """The best of the same kind in this, and of the others where that is better; not such as have other flaws."""
        was, found = share(own) or 0.0, []
        for is_alike in (True, False):
            good = [
                (now, one.candidate.label)
                for one in others
                if (one.candidate.policy.kind == own.candidate.policy.kind) == is_alike
                and (now := share(one)) is not None
                and now <= BETTER * was
                and not bounds.marks(one)
            ]
            if good:
                found.append(f"{percent(min(good)[0])} with {min(good)[1]}")
                was = min(good)[0]
        return "".join(f"; {one}" for one in found)

    said = []
    missing = missing_behaviors(own.candidate.policy, sample.behaviors)
    if missing:
        said.append(f"no event is a {' or a '.join(missing)}, so none closes a segment by it")
    if "full" in marks:
        said.append(f"{percent(own.full)} of segments are closed by being full{_roomier(sample, settings, own)}")
    if "ones" in marks:
        said.append(f"{percent(own.ones)} of segments hold one event{instead(lambda one: one.ones)}")
    if "live" in marks:
        said.append(f"{percent(own.live)} of events are live still at the log's end{instead(lambda one: one.live)}")
    if "reach_us" in marks and settings.compaction == "ring":
        reach, history = lasting(own.reach_us.median), lasting(bounds.history_us.median)
        said.append(
            f"the newest {settings.slots} segments reach back {reach} of the {history} of a long history (medians); "
            'compaction = "log" reaches all of it'
        )
    if "full" not in marks and _leaves_slots(own, sample, settings):
        said.append(
            f"9 of 10 users have at most {counted(own.a_user.most or 0, 'segment')} for slots = {settings.slots}; "
            "shorter segments would use them"
        )
    return said


def about_gaps(flat: Plateau | None, own: Policy) -> str:
    """What there is to say of gaps on these events; "" where there is nothing."""
    if flat is None:
        return ""
    yours = ""
    if isinstance(own, SessionGap):
        outside = "longer" if own.gap_s > flat.most_s else "shorter"
        yours = "; yours is " + ("one of them" if flat.least_s <= own.gap_s <= flat.most_s else outside)
    counts = " to ".join(dict.fromkeys(f"{count:,}" for count in flat.segments))
    return (
        f"any session gap from {lasting(flat.least_s * 10**6)} to {lasting(flat.most_s * 10**6)} cuts about the same "
        f"segments ({counts} if none were full){yours}"
    )


def percent(share: float | None) -> str:
    """A share for people; never 0 % where there is some, nor 100 % where some is missing."""
    if share is None:
        return "-"
    if 0 < share < 0.01:
        return "<1 %"
    if 0.99 < share < 1:
        return ">99 %"
    return f"{100 * share:.0f} %"


def _roomier(sample: Sample, settings: SegmentsConfig, own: Outcome) -> str:
    """How much longer segments may be for half as many to be full, or for fewer at least."""
    policy, best = own.candidate.policy, ""
    for _ in range(DOUBLINGS):
        policy = replace(policy, max_events=2 * policy.max_events)
        full = outcome(sample, replace(own.candidate, policy=policy), settings).full
        if full is not None and full <= BETTER * (own.full or 0):
            best = f"; {percent(full)} with max_events={policy.max_events}"
        if full is None or full <= FULL / 2:
            break
    return best


def _leaves_slots(own: Outcome, sample: Sample, settings: SegmentsConfig) -> bool:
    """Whether most slots stay empty although users have events enough."""
    events = Spread.of(sample.start[1:] - sample.start[:-1])
    return bool(own.segments) and 4 * (own.a_user.most or 0) <= settings.slots <= (events.most or 0) / 2
