"""What is tried: policy x fusion x K x S around a project's own settings, and a small part that has all values.

A candidate changes settings of a project, never its file.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np

from pocketrank.compaction import compaction_from
from pocketrank.config import Project, SegmentsConfig
from pocketrank.errors import BadConfig, UsageError
from pocketrank.segments import KINDS, Policy, policy_settings
from pocketrank_export.model import FUSIONS
from pocketrank_export.settings import ModelConfig, TrainingConfig

OF_K = ("prefix", "attention", "maxsim")  # the others average the K vectors of a segment
DEFAULT_FUSIONS = ("prefix", "attention", "maxsim", "time_decay")
DEFAULT_K, DEFAULT_S = (1, 2), (8, 16, 32)


@dataclass(frozen=True)
class Candidate:
    """Settings to try.

    Attributes:
        policy: the rule that closes segments.
        fusion: [model] fusion. vectors: [model] vectors, K. slots: [segments] slots, S.
    """

    policy: Policy
    fusion: str
    vectors: int
    slots: int

    @classmethod
    def of(cls, project: Project) -> "Candidate":
        """A project's own settings."""
        config = project.section("model", ModelConfig)
        return cls(project.segments.cutter(), config.fusion, config.vectors, project.segments.slots)

    @property
    def policy_label(self) -> str:
        """The policy in a few words; max_events, which most share, goes without saying but for fixed_count."""
        settings = policy_settings(self.policy)
        kind, most = settings.pop("kind"), settings.pop("max_events")
        settings = settings or {"max_events": most}
        shown = {name: "+".join(v) if isinstance(v, list) else v for name, v in settings.items()}
        return " ".join([kind, *(f"{name}={value}" for name, value in shown.items())])

    @property
    def label(self) -> str:
        """All of it in a few words."""
        return f"{self.policy_label}, {self.fusion}, K={self.vectors}, S={self.slots}"

    def settings(self) -> dict[str, dict[str, Any]]:
        """Section and key of everything it names."""
        cut = policy_settings(self.policy)
        return {
            "segments": {"policy": cut.pop("kind"), **cut, "slots": self.slots},
            "model": {"fusion": self.fusion, "vectors": self.vectors},
        }

    def changes(self, project: Project) -> dict[str, dict[str, Any]]:
        """The settings in which it differs from a project."""
        own = {
            "segments": dataclasses.asdict(project.segments),
            "model": dataclasses.asdict(project.section("model", ModelConfig)),
        }
        changed = {
            name: {key: value for key, value in section.items() if own[name][key] != value}
            for name, section in self.settings().items()
        }
        return {name: section for name, section in changed.items() if section}

    def applied(self, project: Project, steps: int) -> Project:
        """The project as it would be with these settings, trained for `steps`; a round has as many as ever."""
        training = project.section("training", TrainingConfig)
        rounds = max(round(training.rounds * steps / training.steps), 1)
        changed: dict[str, Mapping[str, Any]] = {**self.settings(), "training": {"steps": steps, "rounds": rounds}}
        sections = {
            name: {**project.sections.get(name, {}), **changed.get(name, {})} for name in {*project.sections, *changed}
        }
        return Project(project.root, sections)

    def misfit(self, project: Project) -> str:
        """Why it cannot be trained or shipped, as far as settings alone say; "" where it can."""
        config = project.section("model", ModelConfig)
        if self.fusion == "none":
            return "no fusion: item memory alone has nothing to run on a phone"
        if self.vectors > 1 and config.encoder == "mean":
            return 'encoder "mean" has one vector a segment'
        try:
            compaction_from(project.segments.compactor(), self.slots)
        except BadConfig as error:
            return str(error)
        return ""


@dataclass(frozen=True)
class Choices:
    """Values to try on each axis; where one is empty, those that `grid` thinks of.

    Attributes:
        policies: "KIND" or "KIND:key=value,key=value"; keys left out are the project's.
        fusions: names. vectors: K. slots: S.
        candidates: how many are tried at most.
    """

    policies: Sequence[str] = ()
    fusions: Sequence[str] = ()
    vectors: Sequence[int] = field(default=())
    slots: Sequence[int] = field(default=())
    candidates: int = 12

    def __post_init__(self) -> None:
        if self.candidates < 2:
            raise UsageError(
                f"tune: --candidates is {self.candidates}, wanted 2 or more; one is nothing to choose from"
            )
        for name in self.fusions:
            if name not in FUSIONS:
                raise UsageError(f"tune: --fusion {name!r} is none of {', '.join(FUSIONS)}")
        for option, values in (("--vectors", self.vectors), ("--slots", self.slots)):
            if any(value < 1 for value in values):
                raise UsageError(f"tune: {option} {min(values)}, wanted 1 or more")


def grid(project: Project, choices: Choices) -> list[Candidate]:
    """All combinations, the project's own settings first.

    Raises:
        UsageError, BadConfig: a policy that cannot be.
    """
    own = Candidate.of(project)
    policies = [parsed(spec, project.segments) for spec in choices.policies] or _policies(project.segments)
    fusions = list(choices.fusions or dict.fromkeys([own.fusion, *DEFAULT_FUSIONS]))
    vectors = list(choices.vectors or dict.fromkeys([own.vectors, *DEFAULT_K]))
    slots = list(choices.slots or dict.fromkeys([own.slots, *DEFAULT_S]))
    every = [
        Candidate(policy, fusion, k, s)
        for policy, fusion, k, s in product(policies, fusions, vectors, slots)
        if choices.vectors or k == min(vectors) or fusion in OF_K
    ]
    return list(dict.fromkeys([own, *every]))


def spread(every: Sequence[Candidate], count: int, seed: int) -> list[Candidate]:
    """`count` of them, the first among them, so that every policy, fusion, K and S comes up about as often as others.

    A random draw of a dozen would leave some out, and then say nothing of them.

    Args:
        every: the grid.
        count: how many.
        seed: decides between equally rare ones.
    """
    if not every:
        return []
    order = np.random.default_rng((seed, 4)).permutation(np.arange(1, len(every)))
    left, chosen = [every[place] for place in order], [every[0]]
    while left and len(chosen) < count:
        rarest = min(left, key=lambda one: sum(_alike(one, other) for other in chosen))
        left.remove(rarest)
        chosen.append(rarest)
    return chosen


def parsed(spec: str, settings: SegmentsConfig) -> Policy:
    """The policy that `KIND:key=value,...` names; lists of behaviours are joined by +.

    Raises:
        UsageError: no such kind or key.
        BadConfig: a value that cannot be.
    """
    kind, _, rest = spec.partition(":")
    if kind not in KINDS:
        raise UsageError(f"tune: --policy {spec!r}: no policy {kind!r}; known are {', '.join(KINDS)}")
    names = [one.name for one in dataclasses.fields(KINDS[kind])]
    changed: dict[str, Any] = {"policy": kind}
    for pair in filter(None, rest.split(",")):
        key, _, value = pair.partition("=")
        if key not in names:
            raise UsageError(f"tune: --policy {spec!r}: no key {key!r}; {kind} has {', '.join(names)}")
        changed[key] = value.split("+") if key == "behaviors" else int(value) if value.isdecimal() else value
    return dataclasses.replace(settings, **changed).cutter()


def _policies(settings: SegmentsConfig) -> list[Policy]:
    """The project's own, the same four times as long, where that means something, and one or two of another kind."""
    longer = {"session_gap": "gap_s", "fixed_window": "window_s"}.get(settings.policy)
    others: list[dict[str, Any]] = [{longer: 4 * getattr(settings, longer)}] if longer else []
    others += [{"policy": kind} for kind in ("session_gap", "fixed_count") if kind != settings.policy]
    found = [settings.cutter(), *(dataclasses.replace(settings, **one).cutter() for one in others)]
    return list(dict.fromkeys(found))[:3]


def _alike(one: Candidate, other: Candidate) -> int:
    """On how many axes they have the same value."""
    return sum(getattr(one, axis.name) == getattr(other, axis.name) for axis in dataclasses.fields(Candidate))
