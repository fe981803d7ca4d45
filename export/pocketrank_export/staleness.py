"""What is lost when a phone's cache lags behind, and that the phone gets it back by encoding for itself.

A cache that lacks its newest n segments is a pack made before they closed: the S segments before them are in it. Item
memory is in the pack, too, so it lags as well, unless the phone keeps it up from events that it saw.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from pocketrank_export.asked import Asked
from pocketrank_export.comparison import Estimate, difference
from pocketrank_export.evaluation import Evaluation, rank
from pocketrank_export.on_phone import Phone, by_phone
from pocketrank_export.rounding import ROUNDINGS
from pocketrank_export.scorers import by_model
from pocketrank_export.shortened import without_newest_segments
from pocketrank_export.trained import Trained

MISSING = (1, 2, 4)
PHONES = 500
MODEL = "pocketrank"
FLOAT32, INT8 = "float32", "int8"


@dataclass(frozen=True, eq=False)
class Staleness:
    """The model's answers, by number of newest segments that the cache lacks.

    Attributes:
        fresh: nothing is missing.
        segments: the segments' vectors are; item memory is up to date.
        pack: item memory lags as well: the phone has its pack and nothing else.
        phones: questions answered by the device's own code, the missing events being on the phone; methods "0", "1" ...
            by what the pack lacks, and beside them the model itself, "float32" as trained and "int8" as bundles and
            packs hold it. None for a model without a fusion, which has no place on a phone.
        memory_fits: of the questions to phones, those whose user had no more items than a pack remembers. Of the
            others an older pack remembers other items than a newer one, and encoding does not bring these back.
    """

    fresh: Evaluation
    segments: Mapping[int, Evaluation]
    pack: Mapping[int, Evaluation]
    phones: Evaluation | None
    memory_fits: npt.NDArray[np.bool_]

    def change(self, stale: Evaluation) -> Estimate:
        """Of NDCG@10 against nothing missing, paired; less than 0 for a loss."""
        return difference(stale.per_user[MODEL], self.fresh.per_user[MODEL])

    def change_on_phones(self, missing: int) -> Estimate:
        """The same with device encoding, paired with a whole pack on the same phones; all 0 without phones."""
        if self.phones is None:
            return difference(np.zeros(0), np.zeros(0))
        return self.phones.difference(str(missing), "0")

    def same_on_phones(self, missing: int, as_method: str = "0") -> npt.NDArray[np.bool_]:
        """Questions to phones whose best ten, in order, are those of a whole pack, or of another method."""
        if self.phones is None:
            return np.zeros(0, bool)
        stale, whole = (self.phones.ranked[name].rows for name in (str(missing), as_method))
        same: npt.NDArray[np.bool_] = (stale == whole).all(axis=1)
        return same


def staleness(
    trained: Trained,
    asked: Asked,
    missing: Sequence[int] = MISSING,
    phones: int = PHONES,
    seed: int = 0,
) -> Staleness:
    """Ask again with caches that lag.

    Args:
        trained: the model.
        asked: Q questions about the log; a training set says itself what phones had.
        missing: how many of the newest segments are not there.
        phones: questions at most that the device's code answers, drawn at random: one by one it takes longer.
        seed: of that choice.
    """
    model = {MODEL: by_model(trained.model)}
    segments, pack = {}, {}
    for number in missing:
        segments[number] = rank(lacking(asked, number), model, what=f"lacking {number}")
        pack[number] = rank(
            asked,
            model,
            view=lambda part, number=number: without_newest_segments(part, number),  # type: ignore[misc]
            what=f"lacking {number}",
        )
    some = asked.part(np.sort(np.random.default_rng(seed).permutation(len(asked))[:phones]))
    answered, fits = None, np.zeros(0, bool)
    if trained.model.fusion is not None:
        phone = Phone.of(trained)
        methods = {str(number): by_phone(phone, number) for number in (0, *missing)}
        methods |= {FLOAT32: by_model(trained.model), INT8: ROUNDINGS["int8_vectors_and_items"](trained.model)}
        answered = rank(some, methods, what="phones", at_once=16)
        fits = some.items_before <= trained.remembered
    return Staleness(rank(asked, model), segments, pack, answered, fits)


def lacking(asked: Asked, missing: int) -> Asked:
    """The same questions where the newest segments' vectors are not in the cache, and older ones stand there."""
    return replace(asked, builder=replace(asked.builder, given=asked.builder.lacking(missing)))
