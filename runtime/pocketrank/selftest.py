"""Does this engine, on this machine, score as the model did when it was exported?

The golden cases travel in the bundle with the outputs of the framework that trained it, so any client can ask.
Values may differ by the rounding of another order of sums; the order of the best 20 may not, but between scores so
close that this rounding decides.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from pocketrank import engines, tensors
from pocketrank.bundle import Bundle, Manifest
from pocketrank.engines import Arrays, Graph
from pocketrank.errors import BadTensors
from pocketrank.fuser import Fuser, parts_of
from pocketrank.scoring import Candidates, Scorer

TOP = 20
LIMIT = 1e-5
TIE = 2e-5
_STATE = ("vectors", "scales", "age_s", "weight", "mask", "live_behavior", "live_age_s", "live_score", "live_mask")
_OUTPUTS = ("state", "state_bias")
_ENCODER = ("behavior", "gap_s", "score", "mask")
# C cases of the encoder, B of the others, R candidates, M remembered items among them, 4 features of the memory; the
# other letters as in `Sizes`.
_GOLDEN: dict[str, tuple[type, str]] = {
    "encoder.rows": (np.int32, "CL"),
    "encoder.behavior": (np.int32, "CL"),
    **{f"encoder.{name}": (np.float32, "CL") for name in ("gap_s", "score", "mask")},
    "encoder.vectors": (np.float32, "CKD"),
    "state.vectors": (np.int8, "BSKD"),
    "state.scales": (np.float32, "BSK"),
    **{f"state.{name}": (np.float32, "BS") for name in ("age_s", "weight", "mask")},
    "state.live_rows": (np.int32, "BL"),
    "state.live_behavior": (np.int32, "BL"),
    **{f"state.live_{name}": (np.float32, "BL") for name in ("age_s", "score", "mask")},
    "state.state": (np.float32, "BHD"),
    "state.state_bias": (np.float32, "BH"),
    "score.rows": (np.int32, "R"),
    "score.memory_rows": (np.int32, "BM"),
    "score.memory": (np.float32, "BM4"),
    "score.scores": (np.float32, "BR"),
}


@dataclass(frozen=True)
class Parity:
    """How one engine compares with the golden outputs.

    Attributes:
        cases: golden cases.
        empty: cases with neither segments nor live events.
        max_abs_diff: greatest difference of any output.
        excess: greatest difference of a score over its limit, LIMIT * max(1, |score|); fine up to 1.
        order_same: cases whose best 20 are in the same order.
        limit: what `excess` may be. Above 1 for graphs of fewer bits, whose order is not held: what they lose was
            measured when they were exported, and an engine only has to compute them alike.
    """

    cases: int
    empty: int
    max_abs_diff: float
    excess: float
    order_same: int
    limit: float = 1.0

    @property
    def ok(self) -> bool:
        """Whether the engine may be trusted with this bundle."""
        return self.cases > 0 and self.excess <= self.limit and (self.order_same == self.cases or self.limit > 1)

    @property
    def told(self) -> str:
        """How far off it is, in words."""
        return (
            f"off by {self.max_abs_diff:.1e} ({self.excess / self.limit:.1f} times the limit), "
            f"with the same best {TOP} in {self.order_same} of {self.cases} cases"
        )


def check(bundle: Bundle, engine: str) -> Parity:
    """Run every golden case on one engine.

    Raises:
        BadTensors: the golden file is damaged, or was made for other sizes.
        BadBundle: the engine cannot load a graph.
        MissingExtra: the engine is not installed.
    """
    golden, _ = tensors.read(bundle.folder / "golden.safetensors")
    tensors.checked(golden, _GOLDEN, str(bundle.folder / "golden.safetensors"), {**asdict(bundle.sizes), "4": 4})
    _check_rows(golden, bundle)
    encoder, fuser = engines.load(bundle.folder, "encoder", engine), Fuser.load(bundle, engine)
    scorer = Scorer.load(bundle, engine)
    embed = bundle.items.embed
    encoded = _each(
        encoder, {"items": embed(golden["encoder.rows"]), **{name: golden[f"encoder.{name}"] for name in _ENCODER}}
    )
    inputs = {"live_items": embed(golden["state.live_rows"]), **{name: golden[f"state.{name}"] for name in _STATE}}
    cases = len(golden["state.mask"])
    ways = [_each(fuser.whole, inputs), *([fuser.continued(*parts_of(inputs))] if fuser.is_parted else [])]
    scores = [
        np.stack([_scores(scorer, golden, case, *(states[name][case] for name in _OUTPUTS)) for case in range(cases)])
        for states in ways
    ]
    place, wanted_scores = bundle.items.place[golden["score.rows"]], golden["score.scores"]
    pairs = [(encoded["vectors"], golden["encoder.vectors"])]
    for states, scored in zip(ways, scores, strict=True):
        pairs += [(states[name], golden[f"state.{name}"]) for name in _OUTPUTS]
        pairs.append((scored, wanted_scores))
    allowed = [LIMIT * np.maximum(1, np.abs(wanted)) for _, wanted in pairs]
    return Parity(
        cases=cases,
        empty=int(((golden["state.mask"].sum(axis=1) == 0) & (golden["state.live_mask"].sum(axis=1) == 0)).sum()),
        max_abs_diff=max(_peak(np.abs(found - wanted)) for found, wanted in pairs),
        excess=max(
            _peak(np.abs(found - wanted) / limit) for (found, wanted), limit in zip(pairs, allowed, strict=True)
        ),
        order_same=sum(
            all(same_order(found, wanted, place) for found in every)
            for *every, wanted in zip(*scores, wanted_scores, strict=True)
        ),
        limit=_limit(bundle.manifest),
    )


def _check_rows(golden: Arrays, bundle: Bundle) -> None:
    """Refuse cases that name items which the vocabulary lacks, and a file without cases."""
    where, items = bundle.folder / "golden.safetensors", bundle.sizes.I
    for name, least in (("encoder.rows", -1), ("state.live_rows", -1), ("score.rows", 0)):
        rows = golden[name]
        if rows.size == 0 or rows.min() < least or rows.max() >= items:
            raise BadTensors(f"{where}: {name} has none, or not of this bundle's {items:,} items; export it again")


def _limit(manifest: Manifest) -> float:
    """1 for float32 graphs; for others twice the greatest excess that any engine had when they were exported."""
    found = [one.get("excess") for one in manifest.parity.values() if isinstance(one, Mapping)]
    if manifest.variant == "fp32":
        return 1.0
    return max([1.0, *(2.0 * excess for excess in found if isinstance(excess, int | float))])


def same_order(found: npt.NDArray[np.float32], wanted: npt.NDArray[np.float32], place: npt.NDArray[np.int64]) -> bool:
    """Whether the best 20 agree, passing over swaps between scores closer than TIE.

    Args:
        found: (R,) scores of candidates.
        wanted: (R,) what they should be.
        place: (R,) of each candidate's id, which decides between equal scores; see `Items.place`.
    """
    ours, theirs = (np.lexsort((place, -x))[:TOP] for x in (found, wanted))
    return bool(np.all((ours == theirs) | (np.abs(wanted[ours] - wanted[theirs]) < TIE)))


def _peak(differences: npt.NDArray[np.float32]) -> float:
    """The greatest difference; NaN counts as infinite, since an engine that gives NaN agrees with nothing."""
    return float(np.nan_to_num(differences, nan=np.inf, posinf=np.inf).max(initial=0.0))


def _each(graph: Graph, inputs: Arrays) -> Arrays:
    if not graph.batch:
        return graph.run(inputs)
    runs = [
        graph.run({name: column[case : case + 1] for name, column in inputs.items()})
        for case in range(len(next(iter(inputs.values()))))
    ]
    return {name: np.concatenate([run[name] for run in runs]) for name in runs[0]}


def _scores(
    scorer: Scorer, golden: Arrays, case: int, state: npt.NDArray[np.float32], bias: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Scores of one case's candidates, from this engine's own state: errors add up as they would on a phone."""
    rows, remembered = golden["score.rows"].astype(np.int64), golden["score.memory_rows"][case]
    added = np.zeros(scorer.bundle.sizes.I, np.float32)
    there = (remembered >= 0) & (remembered < len(added))
    added[remembered[there]] = scorer.added(np.where(there, remembered, 0), golden["score.memory"][case])[there]
    found = scorer.scores(Candidates.of_rows(scorer.bundle, rows), state, bias, added)
    if not scorer.has_catalogue:
        return found
    at_once = scorer.scores(scorer.all_items, state, bias, added)[rows]
    wanted = golden["score.scores"][case]
    return np.where(np.abs(at_once - wanted) > np.abs(found - wanted), at_once, found)  # the worse of both ways
