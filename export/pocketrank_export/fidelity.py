"""What a variant of an export costs: parity with the model, and what is lost through its graphs, as a phone runs them.

Held-out questions are answered by the device's own code with each variant's graphs, and the answers compared with
those of the float32 graphs on the same engine, user by user.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pocketrank import selftest
from pocketrank.bundle import Bundle
from pocketrank.errors import NotReady
from pocketrank_cli.command import progress
from pocketrank_export.answers import Answers, chance, of_known_items
from pocketrank_export.asked import Asked
from pocketrank_export.comparison import Estimate
from pocketrank_export.evaluation import rank
from pocketrank_export.examples import Builder
from pocketrank_export.on_phone import Moments, Phone, by_phone
from pocketrank_export.scorers import Scorer
from pocketrank_export.trained import Trained

QUESTIONS = 500
AT_ONCE = 16
REQUESTS = 60
FP32 = "fp32"
Key = tuple[str, str]  # variant, engine
# What a head is judged by; of the first more is better, of the others less.
METRIC = {"next_item": "ndcg_10", "click": "log_loss", "rating": "rmse"}


@dataclass(frozen=True)
class Quality:
    """Of one variant on one engine.

    Attributes:
        metric: "ndcg_10", "log_loss" or "rmse", means over users.
        value: of the variant's graphs.
        fp32: of the float32 ones.
        difference: the first less the second, paired over users.
        questions: that were asked.
    """

    metric: str
    value: float
    fp32: float
    difference: Estimate
    questions: int

    @property
    def loss(self) -> float:
        """How much worse than float32; 0 where it is no worse."""
        worse = -self.difference.mean if self.metric == METRIC["next_item"] else self.difference.mean
        return max(0.0, worse)

    def facts(self) -> dict[str, Any]:
        """As JSON and a manifest show it."""
        return {
            self.metric: round(self.value, 5),
            "fp32": round(self.fp32, 5),
            "difference": round(self.difference.mean, 5),
            "error": round(self.difference.error, 5),
            "users": self.difference.users,
            "questions": self.questions,
        }


@dataclass(frozen=True)
class Fidelity:
    """Of one variant on one engine: how near the model's own numbers, how good, and how long a request takes."""

    parity: selftest.Parity
    quality: Quality
    request_ms: float


def fidelity(
    trained: Trained,
    builder: Builder,
    bundles: Mapping[str, Bundle],
    engines: list[str],
    questions: int = QUESTIONS,
    seed: int = 0,
) -> dict[Key, Fidelity]:
    """Measure variants side by side.

    Args:
        trained: the model.
        builder: of its log.
        bundles: variants by name, "fp32" among them.
        engines: names of the engines to run them on.
        questions: at most, drawn from what the split kept for `evaluate`.
        seed: of that choice.

    Returns:
        By (variant, engine).

    Raises:
        NotReady: the log has nothing to ask.
    """
    keys = [(variant, engine) for engine in engines for variant in bundles]
    phones = {(variant, engine): Phone.exported(bundles[variant], engine) for variant, engine in keys}
    for variant, engine in keys:
        if (same := phones[FP32, engine]).bundle.manifest.encoder_id == bundles[variant].manifest.encoder_id:
            own = phones[variant, engine]
            phones[variant, engine] = Phone(own.bundle, same.encoder, own.fuser, own.scorer)
    asked = trained.split.test(builder)
    asked = asked if trained.config.head == "next_item" else of_known_items(asked)
    asked = asked.part(np.sort(np.random.default_rng(seed).permutation(len(asked))[:questions]))
    if not len(asked):
        raise NotReady(f"{trained.split.kept()}: nothing to measure a variant by; ingest a longer log and train again")
    found, took = qualities(trained, asked, phones), _requests(phones, asked)
    return {key: Fidelity(selftest.check(bundles[key[0]], key[1]), found[key], took[key]) for key in keys}


def qualities(trained: Trained, asked: Asked, phones: Mapping[Key, Phone]) -> dict[Key, Quality]:
    """What each variant's phones answer, against the answers of the float32 ones of their engine.

    Args:
        trained: the model, for its head.
        asked: Q questions, of known items where the head is not "next_item".
        phones: by (variant, engine), "fp32" of each engine among them.
    """
    moments = Moments()
    scorers = {key: by_phone(phone, moments=moments) for key, phone in phones.items()}
    names = {key: "/".join(key) for key in phones}
    if trained.config.head == "next_item":
        evaluation = rank(asked, {names[key]: scorers[key] for key in phones}, what="variants", at_once=AT_ONCE)
        means, difference = evaluation.means(), evaluation.difference
    else:
        answers = _answers(trained, asked, {names[key]: scorers[key] for key in phones})
        means, difference = {name: answers.estimate(name).mean for name in names.values()}, answers.difference
    metric, found = METRIC[trained.config.head], {}
    for (variant, engine), name in names.items():
        whole = names[FP32, engine]
        found[variant, engine] = Quality(metric, means[name], means[whole], difference(name, whole), len(asked))
    return found


def _answers(trained: Trained, asked: Asked, scorers: Mapping[str, Scorer]) -> Answers:
    head, labels = trained.config.head, asked.builder.labels
    if labels is None:
        raise ValueError("a builder without labels asks for items, not for answers")
    said: dict[str, list[Any]] = {name: [] for name in scorers}
    parts = list(asked.parts(AT_ONCE))
    for part in progress(parts, len(parts), "variants", f"x {AT_ONCE} events"):
        rows, batch = part.history.events.rows[part.asked_at], part.batch()
        for name, scorer in scorers.items():
            said[name].append(scorer(batch, part)[np.arange(len(part)), rows].astype(np.float64))
    told = {name: np.concatenate(values) for name, values in said.items()}
    if head == "click":
        told = {name: chance(values) for name, values in told.items()}
    return Answers(head, asked.user, labels[asked.asked_at].astype(np.float64), told)


def _requests(phones: Mapping[Key, Phone], asked: Asked) -> dict[Key, float]:
    """Median milliseconds of a request after an event, of the whole catalogue, taken in turn."""
    one = asked.part(np.array([int(np.argmax(asked.segments_before))]))
    moments = Moments()
    known = {key: moments.of(phone, one)[0] for key, phone in phones.items()}
    taken: dict[Key, list[float]] = {key: [] for key in phones}
    for _ in range(REQUESTS):
        for key, phone in phones.items():
            begin = time.perf_counter()
            phone.scores(*known[key])
            taken[key].append(time.perf_counter() - begin)
    return {key: 1e3 * float(np.median(times[REQUESTS // 4 :])) for key, times in taken.items()}
