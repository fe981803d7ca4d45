"""`pocketrank train --set`: fit fusion and item memory anew on what phones really had cached, and nothing else.

The set's vectors come from the encoder that the project has, so encoder, item vectors and biases stay as they are, to
the bit: the next `export` gives another model_id and the same encoder_id, and every row and pack stays valid. A fusion
other than the trained one starts afresh.
"""

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from pocketrank.bundle import Bundle, Items
from pocketrank.config import FILE_NAME, Project
from pocketrank.errors import BadConfig, BadInput, BundleMismatch
from pocketrank.times import from_us
from pocketrank_export.asked import Asked
from pocketrank_export.examples import Builder
from pocketrank_export.exporting import item_table
from pocketrank_export.heads import head_of
from pocketrank_export.model import Model
from pocketrank_export.runs import builder_of, checkpoints_of, digest_of, discard
from pocketrank_export.settings import ModelConfig, TrainingConfig
from pocketrank_export.split import Split
from pocketrank_export.together import led, meet
from pocketrank_export.trained import WEIGHTS, Trained, new_model
from pocketrank_export.training_set import AGAIN, TrainingSet

# [model] settings that decide what a segment's vectors are, or what is stored with them.
OF_THE_ENCODER = (
    "encoder",
    "width",
    "vectors",
    "top_items",
    "encoder_layers",
    "heads",
    "head_width",
    "feed_forward",
    "content_buckets",
)
# Those that decide whether a fusion can go on from the trained one.
OF_THE_FUSION = ("fusion", "reduce", "layers", "half_life_s", "memory", "fusion_shape")
# [training] settings that decide what is asked, and what is kept from it.
OF_THE_QUESTIONS = ("target", "repeats", "split", "last", "holdout", "validation")
MORE = "write one with more: pocketrank segment --training-set FILE --examples N"


@dataclass(frozen=True, eq=False)
class Refitted:
    """What came of it.

    Attributes:
        trained: the model that is in the project now.
        validation: the head's metric on the validation questions of the best round, and of the memory alone.
        before: the same of the model as it was, on the same validation questions; None where the fusion is another one.
        is_better: whether the model is a new one; otherwise the one that was there stayed.
        examples: of the set, that are segments of the events.
        left_out: that are not, since later events cut them otherwise.
        sync_delay_s: of the set.
    """

    trained: Trained
    validation: dict[str, float]
    before: float | None
    is_better: bool
    examples: int
    left_out: int
    sync_delay_s: int


def refit(project: Project, file: Path, *, progress: bool) -> Refitted:
    """Go on from the project's model on a training set, and write its model folder where that made it better.

    Raises:
        NotReady: no trained model, or no events; or, of several machines, one does not see the project of the first.
        BadInput: the file is missing, damaged or no training set, or has nothing to train or to validate on.
        BundleMismatch: the set is of another encoder than the project's model.
        BadBundle: no bundle, which is what says the encoder's id, or an altered one.
        BadConfig: a setting in [model] would change the encoder.
    """
    from pocketrank_export.training import fit, quality  # noqa: PLC0415  (brings Lightning: seconds)

    meet(project.root)
    old = Trained.open(project.model_dir)
    config, training = project.section("model", ModelConfig), project.section("training", TrainingConfig)
    _check_settings(project, config, old.config)
    _check_questions(project, training, old.training)
    found = TrainingSet.read(file)
    builder = given(project, old, found)
    head = head_of(config, training, builder.history)
    builder = dataclasses.replace(builder, labels=head.labels)  # [training] positive may be another than before
    sessions = _validation(file, builder, old.split)
    torch.manual_seed(training.seed)
    model, goes_on = _started(old, config)
    before = quality(old.model, head, sessions) if goes_on else None
    checkpoints = checkpoints_of(project, config, training, digest_of(file), digest_of(project.model_dir / WEIGHTS))
    after = fit(model, head, builder, old.split, training, checkpoints, progress=progress)
    examples = len(builder.source.examples)
    refitted = dataclasses.replace(
        old,
        model=model.eval(),
        config=config,
        training=training,
        validation={"memory_alone": quality(old.memory_alone, head, sessions), "pocketrank": after},
        training_set={"encoder_id": found.encoder_id, "sync_delay_s": found.sync_delay_s, "examples": examples},
    )
    is_better = led(lambda: before is None or bool(np.float32(after) > np.float32(before)))  # judged in float32
    if is_better:
        led(partial(refitted.save, project.model_dir))
    led(partial(discard, checkpoints))
    kept = refitted if is_better else old
    return Refitted(kept, refitted.validation, before, is_better, examples, len(found) - examples, found.sync_delay_s)


def given(project: Project, trained: Trained, found: TrainingSet) -> Builder:
    """Examples of a project's events, with what the set says was cached.

    Raises:
        BundleMismatch: the set is of another encoder than the model; BadBundle: there is no bundle.
        NotReady: no events.
        BadInput: not one example is in the events.
    """
    bundle = Bundle.open(project.bundle_dir)
    encoder_id = bundle.manifest.encoder_id
    if found.encoder_id != encoder_id:
        raise BundleMismatch(
            f"{found.path}: of encoder {found.encoder_id}, {bundle.folder} is of {encoder_id}; {AGAIN} {found.path}"
        )
    sizes = {axis: getattr(trained.sizes, axis) for axis in "SKD"}
    if found.sizes != sizes:
        raise BundleMismatch(f"{found.path}: {_text(found.sizes)}, the model has {_text(sizes)}; {AGAIN} {found.path}")
    if not _are_alike(item_table(trained), bundle.items):
        raise BundleMismatch(
            f"{bundle.folder}: not exported from the model in {project.model_dir}, whose items are others; run: "
            f"pocketrank export; pocketrank segment; feast apply; pocketrank segment --training-set {found.path}"
        )
    builder = builder_of(project, trained)
    source = found.joined(builder.history, builder.slots, builder.length)
    if not len(source.examples):
        raise BadInput(
            f"{found.path}: not one of its {len(found)} examples is a segment of {project.events_dir}; "
            f"{AGAIN} {found.path}"
        )
    return dataclasses.replace(builder, given=source)


def _validation(file: Path, builder: Builder, split: Split) -> Asked:
    """The sessions that choose the best round, with something before them to train on."""
    history, examples = builder.history, builder.source.examples
    is_by_time = split.by == "time"
    begin, end = (from_us(at).isoformat() if is_by_time else "" for at in (split.validation_us, split.until_us))
    if not (history.segments.first[examples] < split.train_end(history)[history.segment_user[examples]]).any():
        where = f"before {begin}, where validation begins" if is_by_time else "before what is kept of each user"
        raise BadInput(f"{file}: no example {where}; {MORE}")
    sessions = split.validation(builder)
    if not len(sessions):
        where = f"from {begin} to {end}, which choose" if is_by_time else f"before {split.kept()}, where they choose"
        raise BadInput(f"{file}: no example {where} the best round; {MORE}")
    return sessions


def _started(old: Trained, config: ModelConfig) -> tuple[Model, bool]:
    """A model with the trained weights, encoder, items and biases frozen; and whether its fusion goes on, too."""
    model = new_model(config, old.vocabulary, old.policy, old.slots, old.features)
    goes_on = all(getattr(config, name) == getattr(old.config, name) for name in OF_THE_FUSION)
    wanted = model.state_dict().keys()
    known = {
        name: value
        for name, value in old.model.state_dict().items()
        if name in wanted and (goes_on or not name.startswith("fusion."))
    }
    model.load_state_dict(known, strict=False)
    keep_encoder(model)
    return model, goes_on


def keep_encoder(model: Model) -> None:
    """Leave what the encoder's id covers as it is while a model trains."""
    for part in (model.items, model.encoder, *([model.content] if model.content is not None else [])):
        part.requires_grad_(False)
    model.bias.requires_grad_(False)  # it is in the item table


def _check_settings(project: Project, config: ModelConfig, trained: ModelConfig) -> None:
    where = f"{project.root / FILE_NAME} [model]"
    for name in OF_THE_ENCODER:
        wanted, found = getattr(trained, name), getattr(config, name)
        if found != wanted:
            raise BadConfig(
                f"{where} {name}: found {found!r}, but a training set keeps the encoder, which has {wanted!r}; "
                "set it back, or train all anew: pocketrank train"
            )
    if config.head != trained.head:
        raise BadConfig(
            f"{where} head: found {config.head!r}, but --set goes on from a model of head {trained.head!r}; "
            "set it back, or train all anew: pocketrank train"
        )
    if config.memory and not trained.memory:
        raise BadConfig(
            f"{where} memory: found true, but --set goes on from a model without item memory; "
            "set it to false, or train all anew: pocketrank train"
        )
    if config.fusion == "none":
        raise BadConfig(f"{where} fusion: 'none' fuses no cached segments; choose one that does, or leave out --set")


def _check_questions(project: Project, training: TrainingConfig, trained: TrainingConfig) -> None:
    for name in OF_THE_QUESTIONS:
        wanted, found = getattr(trained, name), getattr(training, name)
        if found != wanted:
            raise BadConfig(
                f"{project.root / FILE_NAME} [training] {name}: found {found!r}, but --set asks what the model was "
                f"trained on, by {wanted!r}; set it back, or train all anew: pocketrank train"
            )


def _are_alike(one: Items, other: Items) -> bool:
    arrays = ("vectors", "scales", "bias", "unknown")
    return one.ids == other.ids and all(np.array_equal(getattr(one, name), getattr(other, name)) for name in arrays)


def _text(sizes: dict[str, int]) -> str:
    return ", ".join(f"{axis}={size}" for axis, size in sizes.items())
