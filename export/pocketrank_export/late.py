"""`maxsim`: every vector of every segment is a state, and meets each candidate by itself (late interaction).

The score takes the best match, or the log-sum-exp of all ([model] reduce), so one segment that fits is enough: nothing
is averaged away before the item is known. Source: ColBERT, Khattab and Zaharia, SIGIR 2020.
"""

import torch
from torch import Tensor, nn

from pocketrank_export.fusion import Cached, Fusion, Live, Parts, session_of
from pocketrank_export.layers import MASKED, Numbers

AGE_WIDTH = 16  # of the hidden layer between an age and its bias


class MaxSim(Fusion):
    """States: all Z_ik, the live session's K vectors and one learned vector, always present; H = (S + 1) K + 1.

    A state's bias is a learned function of its segment's age, the live session's being 0; what is not there has -1e9,
    which no match outweighs, and the learned vector keeps that from ever being the best.
    """

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self.states = (parts.slots + 1) * parts.config.vectors + 1
        self.encoder = parts.encoder
        self.always = nn.Parameter(torch.zeros(1, 1, parts.config.width))
        self.always_bias = nn.Parameter(torch.zeros(1, 1))
        self.aged = Numbers(1, AGE_WIDTH)
        self.bias = nn.Linear(AGE_WIDTH, 1)
        nn.init.zeros_(self.bias.weight)
        nn.init.zeros_(self.bias.bias)

    def forward(self, cached: Cached, live: Live) -> tuple[Tensor, Tensor]:
        """Fuse; segments as they come, the live session, the learned vector."""
        batch, slots, per_segment, width = cached.vectors.shape
        session, there = session_of(self.encoder, live)
        vectors = (cached.vectors * cached.mask[..., None, None]).reshape(batch, slots * per_segment, width)
        state = torch.cat([vectors, session, self.always.expand(batch, 1, width)], dim=1)
        age, mask = torch.cat([cached.age_s, torch.zeros_like(there)], dim=1), torch.cat([cached.mask, there], dim=1)
        bias = self.bias(self.aged(age))[..., 0] * mask + (1.0 - mask) * MASKED
        bias = bias[..., None].expand(batch, slots + 1, per_segment).reshape(batch, (slots + 1) * per_segment)
        return state, torch.cat([bias, self.always_bias.expand(batch, 1)], dim=1)
