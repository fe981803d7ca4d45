"""Fit a model: first item memory and popularity alone, then everything, starting from there.

The first stage is the baseline "item memory alone" of the evaluation, trained alike. Loops, checkpoints and progress
are Lightning's.
"""

import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pocketrank_export.examples import Batch, Builder
from pocketrank_export.metrics import ndcg
from pocketrank_export.model import Model
from pocketrank_export.scoring import batch_scores
from pocketrank_export.settings import TrainingConfig
from pocketrank_export.split import Split, batches, first_after

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import lightning
    from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, TQDMProgressBar


LIVE_AT_MOST = (0, 0, 2, 4, 8, 64)


class Steps(torch.utils.data.IterableDataset[Batch]):
    """Training batches: runs of consecutive segments of random users, each with a random number of live events."""

    def __init__(self, builder: Builder, split: Split, config: TrainingConfig) -> None:
        history = builder.history
        self.builder, self.config, self.epoch = builder, config, 0
        self.end = np.searchsorted(np.arange(len(history.segments)), 0) + np.array(
            [
                first + np.searchsorted(history.segment_start_us[first:last], split.validation_us)
                for first, last in zip(history.user_first_segment[:-1], history.user_first_segment[1:], strict=True)
            ],
            np.int64,
        )
        self.first = history.user_first_segment[:-1]

    def __len__(self) -> int:
        return max(int(sum(-(-(self.end - self.first) // self.config.run)) * self.config.run // self.config.batch), 1)

    def __iter__(self) -> Iterator[Batch]:
        config, cut = self.config, self.builder.history.segments
        random = np.random.default_rng((config.seed, self.epoch))
        self.epoch += 1
        shift = random.integers(0, config.run, len(self.first))
        runs = [
            np.arange(max(begin, first), min(begin + config.run, last))
            for first, last, back in zip(self.first, self.end, shift, strict=True)
            for begin in range(first - back, last, config.run)
            if min(begin + config.run, last) > max(begin, first)
        ]
        order = random.permutation(len(runs))
        per_step = max(config.batch // config.run, 1)
        for begin in range(0, min(len(self) * per_step, len(order)), per_step):
            segment = np.concatenate([runs[index] for index in order[begin : begin + per_step]])
            size = cut.end[segment] - cut.first[segment]
            most = random.choice(LIVE_AT_MOST)  # one limit a step, so that most steps are short
            live = random.integers(0, np.minimum(size, most + 1))
            yield self.builder.batch(segment, live, cut.end[segment])


class Fit(lightning.LightningModule):
    """One model, its loss and its validation metric."""

    def __init__(self, model: Model, config: TrainingConfig, steps: int) -> None:
        super().__init__()
        self.model, self.config, self.steps = model, config, steps
        self.found: list[np.ndarray] = []

    def scores(self, batch: Batch) -> Tensor:
        """(B, I) scores of a batch."""
        return batch_scores(self.model, batch, self.config.unknown if self.training else 0.0)

    def training_step(self, batch: Batch) -> Tensor:
        """Softmax over the catalogue; an example's targets share its weight."""
        log_share = torch.log_softmax(self.scores(batch), dim=1)
        targets = torch.bincount(batch.target_example, minlength=len(batch)).clamp(min=1)
        hit = log_share[batch.target_example, batch.target_row] / targets[batch.target_example]
        loss: Tensor = -hit.sum() / max(len(np.unique(batch.target_example.numpy())), 1)
        self.log("loss", loss, prog_bar=True, batch_size=len(batch))
        return loss

    def validation_step(self, batch: Batch) -> None:
        """Collect NDCG@10."""
        self.found.append(ndcg(self.scores(batch).numpy(), batch.target_example.numpy(), batch.target_row.numpy()))

    def on_validation_epoch_end(self) -> None:
        """Log the mean over users."""
        self.log("ndcg", mean(self.found), prog_bar=True)
        self.found.clear()

    def configure_optimizers(self) -> Any:
        """AdamW under a one-cycle schedule."""
        optimizer = torch.optim.AdamW(
            self.parameters(), self.config.learning_rate, weight_decay=self.config.weight_decay
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.config.learning_rate, total_steps=self.steps, pct_start=0.1
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def mean(found: list[np.ndarray]) -> float:
    """Mean over the examples that have a target; 0 where there are none."""
    values = np.concatenate(found) if found else np.zeros(0)
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else 0.0


def fit(model: Model, builder: Builder, split: Split, config: TrainingConfig, folder: Path, progress: bool) -> float:
    """Train, keeping the best epoch's weights in `model` and the newest checkpoint in `folder`.

    Interrupted and called again with the same folder, it goes on from the last epoch.

    Returns:
        The best epoch's NDCG@10 on the validation sessions.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    lightning.seed_everything(config.seed, verbose=False)
    torch.set_num_threads(max((os.cpu_count() or 1) // 2, 1))  # steps are small: with a thread a core they wait longer
    steps = Steps(builder, split, config)
    validation: Any = list(batches(builder, *first_after(builder, split.validation_us, split.until_us)))
    module = Fit(model, config, config.epochs * len(steps) + 1)
    best = ModelCheckpoint(folder, "best", monitor="ndcg", mode="max", save_last=True, enable_version_counter=False)
    stop = EarlyStopping("ndcg", mode="max", patience=config.patience)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(
            max_epochs=config.epochs,
            accelerator="auto",
            logger=False,
            callbacks=[best, stop, *([TQDMProgressBar()] if progress else [])],
            enable_progress_bar=progress,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            gradient_clip_val=1.0,
        )
        last = folder / "last.ckpt"
        trainer.fit(
            module,
            torch.utils.data.DataLoader(steps, batch_size=None),
            torch.utils.data.DataLoader(validation, batch_size=None),
            ckpt_path=str(last) if last.is_file() else None,
        )
    if trainer.interrupted:
        raise KeyboardInterrupt
    kept = torch.load(best.best_model_path, weights_only=False)["state_dict"]
    model.load_state_dict({name.removeprefix("model."): value for name, value in kept.items()})
    return float(best.best_model_score or 0.0)
