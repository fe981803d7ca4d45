"""A trained model on disk: `weights.safetensors` and `model.json`, read by `evaluate` and `export`.

No pickles: checkpoints of a run that is still going are Lightning's and go away when it ends.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pocketrank import tensors
from pocketrank.atomic import folder_beside
from pocketrank.bundle import Sizes
from pocketrank.errors import NotReady
from pocketrank.parsing import parse
from pocketrank.segments import Policy, policy_from, policy_settings
from pocketrank_export.features import Features
from pocketrank_export.history import Vocabulary
from pocketrank_export.model import Model
from pocketrank_export.settings import ModelConfig, TrainingConfig
from pocketrank_export.split import Split

ENCODER_BATCH = 64
SCORE_CHUNK = 512
WEIGHTS = "weights.safetensors"


@dataclass(frozen=True, eq=False)
class Trained:
    """Everything that evaluation and export need of a training run.

    Attributes:
        model: the whole model.
        memory_alone: item memory and biases only, trained for as long: the baseline.
        config: how the model was built. training: how it was trained.
        vocabulary: items and behaviours.
        policy: the rule that closes segments.
        slots: S. remembered: F.
        compaction: what gives way to a new segment, as a manifest says it.
        half_life_s: of the decayed count.
        lateness_s: allowed lateness.
        weights: score of an event by its behaviour.
        split: where validation and test begin.
        validation: the head's metric (more is better) on the validation questions, of the model and the memory alone.
        training_set: what fusion and memory were fitted on last, where that was a training set.
        init_from: the file it was started from and what was taken of it, where there was one.
        features: what content is made of, item by item of the vocabulary; None for a model without.
    """

    model: Model
    memory_alone: Model
    config: ModelConfig
    training: TrainingConfig
    vocabulary: Vocabulary
    policy: Policy
    slots: int
    compaction: dict[str, Any]
    remembered: int
    half_life_s: float
    lateness_s: int
    weights: dict[str, float]
    split: Split
    validation: dict[str, float]
    training_set: dict[str, Any] = dataclasses.field(default_factory=dict)
    init_from: dict[str, Any] = dataclasses.field(default_factory=dict)
    features: Features | None = None

    @property
    def sizes(self) -> Sizes:
        """Axis lengths of the graphs."""
        return Sizes(
            S=self.slots,
            K=self.config.vectors,
            L=self.policy.max_events,
            D=self.config.width,
            H=1 if self.model.fusion is None else self.model.fusion.states,
            I=len(self.vocabulary.items),
            F=self.remembered,
            T=self.config.top_items,
            encoder_batch=ENCODER_BATCH,
            score_chunk=SCORE_CHUNK,
        )

    def save(self, folder: Path) -> None:
        """Write the folder, whole or not at all; what an earlier run left in it goes away."""
        arrays: tensors.Tensors = {"counts": self.vocabulary.counts.astype(np.int64)}
        if self.features is not None:
            arrays |= self.features.arrays()
        for prefix, model in (("model", self.model), ("memory_alone", self.memory_alone)):
            for name, value in model.state_dict().items():
                arrays[f"{prefix}.{name}"] = value.detach().cpu().numpy()
        facts = {
            "model": dataclasses.asdict(self.config),
            "training": dataclasses.asdict(self.training),
            "items": self.vocabulary.items,
            "behaviors": self.vocabulary.behaviors,
            "policy": policy_settings(self.policy),
            "slots": self.slots,
            "compaction": self.compaction,
            "remembered": self.remembered,
            "half_life_s": self.half_life_s,
            "lateness_s": self.lateness_s,
            "weights": self.weights,
            "split": dataclasses.asdict(self.split),
            "validation": self.validation,
            "training_set": self.training_set,
            "init_from": self.init_from,
        }
        with folder_beside(folder) as draft:
            tensors.save(draft / WEIGHTS, arrays, {})
            (draft / "model.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def open(cls, folder: Path) -> "Trained":
        """Read what `save` wrote.

        Raises:
            NotReady: no trained model there, or one that another version trained.
        """
        path = folder / "model.json"
        if not path.is_file():
            raise NotReady(f"{folder}: no trained model; make one with: pocketrank train")
        facts = json.loads(path.read_text(encoding="utf-8"))
        arrays, _ = tensors.read(folder / WEIGHTS)
        config = parse(ModelConfig, facts["model"], f"{path} model")
        policy = policy_from(facts["policy"])
        vocabulary = Vocabulary(facts["items"], facts["behaviors"], arrays["counts"])
        features = Features.of_arrays(arrays)
        made = [
            _loaded(new_model(chosen, vocabulary, policy, facts["slots"], known), arrays, prefix, folder)
            for chosen, prefix, known in ((config, "model", features), (memory_only(config), "memory_alone", None))
        ]
        return cls(
            model=made[0],
            memory_alone=made[1],
            config=config,
            training=parse(TrainingConfig, facts["training"], f"{path} training"),
            vocabulary=vocabulary,
            policy=policy,
            split=parse(Split, facts["split"], f"{path} split"),
            compaction=facts.get("compaction", {"kind": "ring"}),  # what was trained before there were others
            training_set=facts.get("training_set", {}),
            init_from=facts.get("init_from", {}),
            features=features,
            **{
                name: facts[name]
                for name in ("slots", "remembered", "half_life_s", "lateness_s", "weights", "validation")
            },
        )


def memory_only(config: ModelConfig) -> ModelConfig:
    """The same model without encoder and fusion."""
    return dataclasses.replace(config, fusion="none")


def new_model(
    config: ModelConfig, vocabulary: Vocabulary, policy: Policy, slots: int, features: Features | None = None
) -> Model:
    """A model with fresh weights."""
    return Model(config, len(vocabulary.items), len(vocabulary.behaviors), policy.max_events, slots, features)


def _loaded(model: Model, arrays: dict[str, Any], prefix: str, folder: Path) -> Model:
    wanted = {f"{prefix}.{name}": tuple(value.shape) for name, value in model.state_dict().items()}
    for name, shape in wanted.items():
        found = arrays[name].shape if name in arrays else "missing"
        if found != shape:
            raise NotReady(
                f"{folder / WEIGHTS}: {name} is {found}, wanted {shape}: trained by another version of "
                "pocketrank; train anew with: pocketrank train"
            )
    model.load_state_dict({name.removeprefix(f"{prefix}."): torch.from_numpy(arrays[name]) for name in wanted})
    return model.eval()
