"""Training batches: runs of consecutive segments of random users, and what is asked in them.

Not the loss. Where segments are cut by count, each pass over the log cuts them elsewhere, so that the place of a border
means nothing. Processes that train together share each step's runs among them.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import count, islice, pairwise

import numpy as np
import torch

from pocketrank.errors import NotReady
from pocketrank.groups import begins, spread, starts
from pocketrank_export.asked import Asked
from pocketrank_export.examples import Batch, Builder
from pocketrank_export.history import Index, cut_by_count
from pocketrank_export.settings import TrainingConfig
from pocketrank_export.split import Split
from pocketrank_export.together import rank_and_size

LIVE_AT_MOST = (0, 0, 0, 0, 0, 0, 8, 64)  # live events of a step's examples; mostly none, as when a session begins


def fewer_cached(batch: Batch, random: np.random.Generator) -> Batch:
    """The same, each example with the newest 1, 2, 4 .. or all S of its slots, so that none is learned by heart."""
    slots = batch.mask.shape[1]
    at_most = 2 ** random.integers(0, max(slots - 1, 0).bit_length() + 1, len(batch.mask))
    shown = np.arange(slots) >= slots - at_most[:, None]
    return replace(batch, mask=batch.mask * torch.from_numpy(shown))


class Steps(torch.utils.data.IterableDataset[Batch]):
    """One round of training batches.

    Rounds go on where the last one stopped: every run comes up once before any comes up again. Of processes that train
    together each takes its share of a step's runs, so that a step has the same examples however many they are.
    """

    def __init__(self, builder: Builder, split: Split, config: TrainingConfig) -> None:
        self.builder = replace(builder, repeats=True)  # nothing is ranked here
        self.config, self.round = config, 0
        self.target = split.target
        self.train_end = split.train_end(builder.history)

    def __len__(self) -> int:
        return max(self.config.steps // self.config.rounds, 1)

    def __iter__(self) -> Iterator[Batch]:
        random = np.random.default_rng((self.config.seed, self.round))
        segments = self._segments(self.round * len(self))
        self.round += 1  # now: whoever takes `len` batches never comes back for what follows the last
        for builder, segment in islice(segments, len(self)):
            ask = self.sessions if self.target == "session" else self.events
            yield fewer_cached(ask(builder, segment, random).batch(), random)

    def sessions(self, builder: Builder, segment: Index, random: np.random.Generator) -> Asked:
        """Each segment asked once, after some of its events, mostly none, for all the rest of it that may be seen.

        A full-sequence model is asked the same inside windows of the history: of each segment that begins in one.
        """
        window, cut = builder.history.segments, builder.history.segments
        which, own = segment, segment
        if self.builder.sliding:
            cut = self.builder.history.segments
            place, own = spread(*(np.searchsorted(cut.first, edge[segment]) for edge in (window.first, window.end)))
            which = segment[place]
        most = random.choice(LIVE_AT_MOST)  # one limit a step, so that most steps are short
        first = cut.first[own]
        end = np.minimum(cut.end[own], self.train_end[builder.history.user[first]])
        at = first + random.integers(0, np.clip(end - first, 1, most + 1))
        inside = (first < end) & (at < window.end[which])
        which, end, at = which[inside], end[inside], at[inside]
        return Asked(builder, which, at - window.first[which], end)

    def events(self, builder: Builder, segment: Index, _: np.random.Generator) -> Asked:
        """Each event asked for by itself, before it came."""
        cut, history = builder.history.segments, builder.history
        end = np.minimum(cut.end[segment], self.train_end[history.segment_user[segment]])
        which, event = spread(cut.first[segment], end)
        known = history.events.rows[event] >= 0
        which, event = which[known], event[known]
        return Asked(builder, segment[which], event - cut.first[segment[which]], event + 1)

    def _segments(self, skip: int) -> Iterator[tuple[Builder, Index]]:
        """The segments of step after step, for ever, from the `skip`-th on; each pass cuts users elsewhere."""
        rank, size = rank_and_size()
        for number in count():
            random = np.random.default_rng((self.config.seed, number, 1))
            builder = self._shifted(random)
            runs = self._runs(builder, random)
            begun = starts(np.array([len(run) for run in runs]))[:-1]
            edges = np.flatnonzero(begins(begun // self.config.batch))  # about `batch` segments a step
            steps = [range(*pair) for pair in pairwise([*edges, len(runs)])]
            for step in steps[skip:]:
                share = step[rank % len(step) :: size]  # with more processes than runs, some take the same
                yield builder, np.concatenate([runs[number] for number in share])
            skip = max(skip - len(steps), 0)

    def _shifted(self, random: np.random.Generator) -> Builder:
        """The same log, cut at other places where it is cut by count, or read without regard to segments."""
        if not (self.builder.by_count or self.builder.sliding) or self.builder.given is not None:
            return self.builder
        history = self.builder.history
        shift = random.integers(0, self.builder.length, len(history.users))
        cut = cut_by_count(history.user_first_event, shift, self.builder.length)
        return replace(self.builder, history=replace(history, segments=cut), sliding=False)

    def _runs(self, builder: Builder, random: np.random.Generator) -> list[Index]:
        """Runs of segments in random order."""
        history, length, examples = builder.history, self.config.run, builder.source.examples
        user = history.segment_user[examples]
        examples = examples[history.segments.first[examples] < self.train_end[user]]
        if self.target != "session":  # a step must not be without questions
            known = starts(history.events.rows >= 0)  # (E + 1,) events of known items before each
            end = np.minimum(history.segments.end[examples], self.train_end[history.segment_user[examples]])
            examples = examples[known[end] > known[history.segments.first[examples]]]
        if not len(examples):
            raise NotReady(
                "no segment to train on has an event of a known item; ingest a longer log, "
                "or lower [training] min_count"
            )
        edges = np.searchsorted(history.segment_user[examples], np.arange(len(history.users) + 1))
        first, end = edges[:-1], edges[1:]
        shift = random.integers(0, length, len(first))
        places = (-(-(end - first + shift) // length)) * (end > first)
        owner, place = spread(np.zeros(len(places), np.int64), places)
        order = random.permutation(len(owner))
        begin = (first - shift)[owner] + place * length
        if self.config.per_user:
            chance = self.config.per_user / np.maximum(end - first, 1)
            order = order[random.random(len(order)) < chance[owner[order]]]
        return [
            examples[max(begin[one], first[owner[one]]) : min(begin[one] + length, end[owner[one]])] for one in order
        ]
