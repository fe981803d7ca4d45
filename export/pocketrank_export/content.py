"""Item vectors from content: hashed values and projected columns of `features`, fused and added to the id's vector.

What was never seen in training adds nothing: weights start at 0, and those that no item reached stay there.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from pocketrank_export.features import Features

FIT_STEPS = 200
FIT_RATE = 0.02
FIT_DECAY = 1.0  # each weight is held as though one more item had it, with a vector of 0: rare values shrink most


class ItemContent(nn.Module):
    """h = sum of the embeddings of an item's values + projected numbers; content = h + a small function of h."""

    tokens: Tensor
    shares: Tensor
    start: Tensor
    numbers: Tensor
    known: Tensor

    def __init__(self, features: Features, width: int, buckets: int) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.zeros(buckets, width))
        self.columns = nn.Parameter(torch.zeros(features.numbers.shape[1], width))
        out = nn.Linear(width, width, bias=False)
        self.net = nn.Sequential(nn.Linear(width, width, bias=False), nn.GELU(), out)
        nn.init.zeros_(out.weight)
        # What is read from a file is no weight: it is kept beside them (`Trained.features`), not among them.
        for name in ("tokens", "shares", "start", "numbers"):
            self.register_buffer(name, torch.from_numpy(np.array(getattr(features, name))), persistent=False)
        known = torch.from_numpy(np.append(features.known, False))[:, None]
        self.register_buffer("known", known, persistent=False)

    def forward(self) -> Tensor:
        """(I + 1, D); 0 for items without content, and for the last row, the unknown item."""
        mixed = functional.embedding_bag(
            self.tokens.long(),
            self.values,
            self.start,
            mode="sum",
            per_sample_weights=self.shares,
            include_last_offset=True,
        )
        mixed = mixed + self.numbers @ self.columns
        mixed = mixed + self.net(mixed)
        return torch.cat([mixed, mixed.new_zeros(1, mixed.shape[1])]) * self.known

    def fit_to(self, vectors: npt.NDArray[np.float32]) -> None:
        """Start where content explains as much as it can of (I, D) vectors, of the items that have any.

        Otherwise ids would explain all of them, and nothing would be left to learn from.
        """
        wanted = torch.from_numpy(vectors)
        optimizer = torch.optim.Adam(self.parameters(), FIT_RATE)
        with torch.enable_grad():
            for _ in range(FIT_STEPS):
                optimizer.zero_grad()
                missing = ((wanted - self()[:-1]) * self.known[:-1]).square().sum()
                held = self.values.square().sum() + self.columns.square().sum()
                (missing + FIT_DECAY * held).backward()
                optimizer.step()
        optimizer.zero_grad()
