"""Fusions in which segments are tokens of a transformer, all K vectors of each: `attention` and `prefix`.

In both one learned token is always present, so that a user with nothing at all is a valid input.
"""

from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from pocketrank_export.fusion import Cached, Causal, Fusion, Kept, Live, Parts, pauses, session_of
from pocketrank_export.layers import DAY_S, MASKED, Block, Numbers, seen_before, squash, unseen


class Attention(Fusion):
    """The live state attends over {Z_i + embedded (a_i, w_i)} and a learned token, once a layer.

    The live state is the session's mean vector and a learned one, so somebody without live events asks, too.
    """

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        config, width = parts.config, parts.config.width
        self.encoder = parts.encoder
        self.start = nn.Parameter(torch.zeros(1, 1, width))
        self.nothing = nn.Parameter(torch.zeros(1, 1, width))
        self.aged = Numbers(2, width)
        self.blocks = nn.ModuleList(Block(width, config.fusion_shape, config.dropout) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        if config.head == "next_item":
            nn.init.zeros_(self.norm.weight)  # it starts from what item memory says, and adds to it

    def lengths(self) -> list[Tensor]:
        """See `Fusion`."""
        return [self.norm.weight, self.norm.bias]

    def forward(self, cached: Cached, live: Live) -> tuple[Tensor, Tensor]:
        """Fuse; H = 1."""
        batch, _, _, width = cached.vectors.shape
        session, _ = session_of(self.encoder, live)
        memory, memory_mask = memory_tokens(cached, self.aged(cached.age_s, cached.weight))
        context = torch.cat([self.nothing.expand(batch, 1, width), memory], dim=1)
        seen = unseen(torch.cat([torch.ones_like(live.mask[:, :1]), memory_mask], dim=1))
        x = session.mean(dim=1, keepdim=True) + self.start
        for block in self.blocks:
            x = block(x, context, seen)
        state: Tensor = self.norm(x)
        return state, torch.zeros_like(state[..., 0])


class Prefix(Causal):
    """Segments stand as memory tokens before the live events in a small causal transformer.

    One learned token between the two is always present, so a user with nothing at all is a valid input. The state is
    read at the newest live event, or at that token; the last layer is computed there alone. To it comes, number by
    number weighed, what the newest segments were about: layers need not learn what co-occurrence says. Segments have
    their age as the session began, and live events the pause before them: so nothing depends on when it is asked but a
    state without live events, and one pass answers every question of a session.
    """

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        config, width = parts.config, parts.config.width
        self.start = nn.Parameter(torch.zeros(1, 1, width))
        self.aged = Numbers(2, width)
        self.behavior = nn.Embedding(parts.behaviors, width)
        self.numbers = Numbers(2, width)
        self.position = nn.Parameter(torch.zeros(parts.length, width))
        self.blocks = nn.ModuleList(Block(width, config.fusion_shape, config.dropout) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        self.fading, self.recent = nn.Parameter(torch.tensor(4.0)), nn.Parameter(torch.zeros(width))
        if config.head == "next_item":  # it starts from what item memory and co-occurrence say, and adds to it
            nn.init.zeros_(self.norm.weight)
            nn.init.ones_(self.recent)

    def lengths(self) -> list[Tensor]:
        """See `Fusion`."""
        return [self.norm.weight, self.norm.bias, self.recent]

    def forward(self, cached: Cached, live: Live) -> tuple[Tensor, Tensor]:
        """Fuse; H = 1."""
        cached = begun(cached, live)
        x, bias = self._before_the_last(cached, live)
        there = functional.pad(live.mask, (1, 0), value=1.0)
        here = _newest(x[:, -there.shape[1] :], there)
        state: Tensor = self.norm(self.blocks[-1](here, x, bias[:, :, -1:])) + self._recent(cached)
        return state, torch.zeros_like(state[..., 0])

    def asked(self, cached: Cached, live: Live, example: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """All questions in one pass; see `Fusion`."""
        cached = begun(cached, live)
        x, bias = self._before_the_last(cached, live)
        asked = live.items.shape[1] + 1
        states = self.norm(self.blocks[-1](x[:, -asked:], x, bias[:, :, -asked:]))
        state: Tensor = states[example, position][:, None] + self._recent(cached)[example]
        return state, torch.zeros_like(state[..., 0])

    def kept(self, cached: Cached) -> Kept:
        """See `Causal`."""
        x, mask = memory_tokens(cached, self.aged(cached.age_s, cached.weight))
        bias, found = seen_before(mask), [self._layers[0].keys_values(x)]
        for block, after in pairwise(self._layers):
            x = block.attend(x, *found[-1], bias)
            found.append(after.keys_values(x))
        keys, values = (torch.stack(of_layers, dim=1) for of_layers in zip(*found, strict=True))
        return Kept(keys, values, mask, self._recent(cached))

    def continued(self, kept: Kept, live: Live) -> tuple[Tensor, Tensor]:
        """See `Causal`."""
        x, there = self._session(live), functional.pad(live.mask, (1, 0), value=1.0)
        bias = seen_before(torch.cat([kept.mask, there], dim=1))[:, :, -x.shape[1] :]
        for number, block in enumerate(self._layers):
            keys, values = block.keys_values(x)
            keys = torch.cat([kept.keys[:, number], keys], dim=2)
            values = torch.cat([kept.values[:, number], values], dim=2)
            if block is self._layers[-1]:
                x, bias = _newest(x, there), bias[:, :, -1:]
            x = block.attend(x, keys, values, bias)
        state: Tensor = self.norm(x) + kept.recent
        return state, torch.zeros_like(state[..., 0])

    @property
    def _layers(self) -> list[Block]:
        return cast("list[Block]", list(self.blocks))

    def _session(self, live: Live) -> Tensor:
        """(B, 1 + L, D) the learned token and those of the live events."""
        events = live.items + self.behavior(live.behavior) + self.numbers(pauses(live), live.score)
        events = events + self.position[: live.items.shape[1]]
        return torch.cat([self.start.expand(len(live.mask), 1, -1), events], dim=1)

    def _before_the_last(self, cached: Cached, live: Live) -> tuple[Tensor, Tensor]:
        """(B, N, D) tokens before the last layer, and what each may see as an attention's bias."""
        memory, memory_mask = memory_tokens(cached, self.aged(cached.age_s, cached.weight))
        x = torch.cat([memory, self._session(live)], dim=1)
        bias = seen_before(torch.cat([memory_mask, functional.pad(live.mask, (1, 0), value=1.0)], dim=1))
        for block in self.blocks[:-1]:
            x = block(x, x, bias)
        return x, bias

    def _recent(self, cached: Cached) -> Tensor:
        """(B, 1, D) weighed mean of the segments' vectors, each by (1 + its age in days)^-fading; zero without any."""
        faded = (1.0 - cached.mask) * MASKED - self.fading * squash(cached.age_s / DAY_S)
        share = torch.softmax(faded, dim=1) * cached.mask
        mean: Tensor = self.recent * (share[:, None] @ cached.vectors.mean(dim=2))
        return mean


def _newest(x: Tensor, there: Tensor) -> Tensor:
    """(B, 1, D) the last of (B, M, D) tokens that is there, by a (B, M) mask of 1 and then 0."""
    newest = there - functional.pad(there[:, 1:], (0, 1))
    return newest[:, None] @ x


def begun(cached: Cached, live: Live) -> Cached:
    """The segments with their ages as of the first live event, or of now without any."""
    return cached._replace(age_s=(cached.age_s - live.age_s[:, :1] * live.mask[:, :1]).clamp(min=0.0))


def memory_tokens(cached: Cached, about: Tensor) -> tuple[Tensor, Tensor]:
    """(B, S*K, D) vectors of segments, each with the (B, S, D) `about` of its segment, and (B, S*K) their mask."""
    batch, slots, per_segment, width = cached.vectors.shape
    tokens = (cached.vectors + about[:, :, None, :]).reshape(batch, slots * per_segment, width)
    return tokens, cached.mask[:, :, None].expand(batch, slots, per_segment).reshape(batch, slots * per_segment)
