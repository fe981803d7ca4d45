"""From matches with H state vectors to one score: the reduce of `score(c) = reduce_h(<c, state_h> + bias_h) + ...`.

Apart from `model`, since training scores sampled candidates by it, and evaluation the whole catalogue.
"""

from torch import Tensor

REDUCTIONS = ("sum", "max", "lse")


def reduced(match: Tensor, how: str) -> Tensor:
    """Reduce over the state vectors.

    Args:
        match: (..., H, I) matches of each state vector with each candidate, its bias added; -1e9 where masked.
        how: "sum"; "max", the best match; or "lse", the log-sum-exp of all.

    Returns:
        (..., I).

    Source: Khattab and Zaharia, SIGIR 2020 (max); log-sum-exp is its smooth form, at most log H above.
    """
    if how == "sum":
        return match.sum(dim=-2)
    best = match.amax(dim=-2)
    if how == "max":
        return best
    return best + (match - best.unsqueeze(-2)).exp().sum(dim=-2).log()  # every exponent is at most 0
