"""What it costs to make a model smaller, in one table: rounded to few bits, and pruned, before and after fine-tuning.

Every row answers the questions that the split kept for `evaluate`, and is held against the model as trained, pair by
pair over the users. Nothing of the project changes here: `commands` saves the pruned model where that is asked for.
"""

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch

from pocketrank.config import Project
from pocketrank.errors import UsageError
from pocketrank_export.comparison import Estimate
from pocketrank_export.evaluation import Evaluation, rank
from pocketrank_export.examples import Builder
from pocketrank_export.heads import head_of
from pocketrank_export.model import Model
from pocketrank_export.pruning import Kept, importance, pruned
from pocketrank_export.refit import keep_encoder
from pocketrank_export.report import table
from pocketrank_export.rounding import ROUNDINGS
from pocketrank_export.runs import checkpoints_of, digest_of, discard
from pocketrank_export.scorers import by_model
from pocketrank_export.steps import Steps
from pocketrank_export.trained import WEIGHTS, Trained

AS_TRAINED, PRUNED, TUNED = "as_trained", "pruned", "pruned_and_tuned"
LOOKED_AT = 20  # steps' worth of training questions that say what is important


@dataclass(frozen=True, eq=False)
class Compression:
    """What was found.

    Attributes:
        evaluation: of every row, by name.
        parameters: of every row.
        smaller: the pruned model, tuned where that ranks the validation sessions better; None where nothing was pruned.
        tuning: NDCG@10 on these, of the pruned model before and after; None where nothing was tuned.
    """

    evaluation: Evaluation
    parameters: Mapping[str, int]
    smaller: Trained | None
    tuning: tuple[float, float] | None = None

    def difference(self, row: str) -> Estimate:
        """In NDCG@10, to the model as trained."""
        return self.evaluation.difference(row, AS_TRAINED)


def compression(
    project: Project, trained: Trained, builder: Builder, kept: Kept | None, steps: int, *, progress: bool
) -> Compression:
    """Ask every smaller form of a model what the split kept for evaluation.

    Args:
        project: where checkpoints of the fine-tuning go, so that an interrupted one is gone on with.
        trained: the model.
        builder: of the log.
        kept: what a pruned model keeps; None for none.
        steps: of fine-tuning; 0 for none.
        progress: whether to draw it.

    Raises:
        UsageError: the model is no ranker of next items, has no layers to prune, or fewer heads or units than are to
            be kept.
    """
    if trained.config.head != "next_item":
        raise UsageError(
            f'compress: costs are in NDCG@10 of what came next; this model has [model] head = "{trained.config.head}"'
        )
    if trained.model.fusion is None:
        raise UsageError('compress: [model] fusion is "none", a baseline that nothing is cached for; choose another')
    model, scorers = trained.model, {AS_TRAINED: by_model(trained.model)}
    parameters = dict.fromkeys([AS_TRAINED, *ROUNDINGS], parameters_of(model))
    scorers |= {name: make(model) for name, make in ROUNDINGS.items()}
    smaller, tuning = None, None
    if kept is not None:
        smaller = prune(trained, builder, kept)
        scorers[PRUNED], parameters[PRUNED] = by_model(smaller.model), parameters_of(smaller.model)
        if steps:
            after = tuned(project, smaller, builder, steps, kept, progress=progress)
            scorers[TUNED], parameters[TUNED] = by_model(after.model), parameters_of(after.model)
            tuning = smaller.validation["pocketrank"], after.validation["pocketrank"]
            smaller = after if tuning[1] > float(np.float32(tuning[0])) else smaller  # training keeps its in float32
    found = rank(trained.split.test(builder), scorers, what="compress")
    return Compression(found, parameters, smaller, tuning)


def prune(trained: Trained, builder: Builder, kept: Kept) -> Trained:
    """A smaller model, not tuned yet, by what matters to some of the questions it was trained on."""
    from pocketrank_export.training import quality  # noqa: PLC0415  (brings Lightning: seconds)

    kept.of(trained.config)  # now, so that a bad number stops it at once
    head = head_of(trained.config, trained.training, builder.history)
    batches = islice(Steps(builder, trained.split, trained.training), LOOKED_AT)
    torch.manual_seed(trained.training.seed)
    smaller = pruned(trained, kept, importance(trained.model, head, batches, kept.encoder))
    found = quality(smaller.model, head, trained.split.validation(builder))
    return dataclasses.replace(smaller, validation={**smaller.validation, "pocketrank": found})


def tuned(project: Project, smaller: Trained, builder: Builder, steps: int, kept: Kept, *, progress: bool) -> Trained:
    """Let what is left of a model make up for what is gone, at a tenth of the learning rate; the model given stays.

    Where the encoder was not pruned, it and what else its id covers stay as they are, to the bit.
    """
    from pocketrank_export.training import fit  # noqa: PLC0415  (brings Lightning: seconds)

    training = smaller.training
    rate, rounds = training.learning_rate / 10, min(training.rounds, steps)
    again = dataclasses.replace(training, steps=steps, rounds=rounds, learning_rate=rate)
    model = copy.deepcopy(smaller.model).train()
    if kept.encoder:
        model.id_dropout = training.id_dropout
    else:
        keep_encoder(model)
    folder = checkpoints_of(project, smaller.config, again, digest_of(project.model_dir / WEIGHTS))
    head = head_of(smaller.config, again, builder.history)
    quality = fit(model, head, builder, smaller.split, again, folder, progress)
    discard(folder)
    validation = {**smaller.validation, "pocketrank": quality}
    return dataclasses.replace(smaller, model=model.eval(), validation=validation)


def parameters_of(model: Model) -> int:
    """How many numbers a model has, its item vectors among them."""
    return sum(value.numel() for value in model.parameters())


def facts(found: Compression) -> dict[str, Any]:
    """Everything, as JSON shows it."""
    means = found.evaluation.means()
    return {
        "users": found.evaluation.users,
        "rows": {
            name: {
                "ndcg_10": round(means[name], 4),
                **({} if name == AS_TRAINED else {"difference": found.difference(name).rounded(5)}),
                "parameters": found.parameters[name],
            }
            for name in found.evaluation.ranked
        },
        **({} if found.tuning is None else {"validation_before_and_after_tuning": [round(x, 4) for x in found.tuning]}),
    }


def text(facts: Mapping[str, Any]) -> str:
    """The table of what `facts` found."""
    rows = []
    for name, row in facts["rows"].items():
        apart = row.get("difference")
        cost = "" if apart is None else f"{apart['mean']:+.4f} ± {apart['error']:.4f}"
        rows.append([name.replace("_", " "), f"{row['ndcg_10']:.4f}", cost, f"{row['parameters']:,}"])
    return table(["", "NDCG@10", "to as trained", "parameters"], rows)
