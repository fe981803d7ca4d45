"""Fit a model: first item memory and popularity alone, then everything, starting from there.

The first stage is the baseline "item memory alone" of the evaluation, trained alike. Loops, checkpoints and progress
are Lightning's.
"""

import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pocketrank.errors import is_interrupt
from pocketrank.groups import spread
from pocketrank_export.examples import Batch, Builder
from pocketrank_export.history import Index
from pocketrank_export.metrics import ndcg
from pocketrank_export.model import Model
from pocketrank_export.scoring import batch_scores
from pocketrank_export.settings import TrainingConfig
from pocketrank_export.split import Split, batches, first_after

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import lightning
    from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint

LIVE_AT_MOST = (0, 0, 0, 0, 0, 0, 8, 64)  # live events of a step's examples; mostly none, as when a session begins


class Steps(torch.utils.data.IterableDataset[Batch]):
    """One round of training batches: runs of consecutive segments of random users, each with some live events.

    Rounds go on where the last one stopped: every run comes up once before any comes up again.
    """

    def __init__(self, builder: Builder, split: Split, config: TrainingConfig) -> None:
        history, examples = builder.history, builder.source.examples
        self.builder, self.config, self.round = builder, config, 0
        self.examples = examples[history.segment_start_us[examples] < split.validation_us]
        edges = np.searchsorted(history.segment_user[self.examples], np.arange(len(history.users) + 1))
        self.first, self.end = edges[:-1], edges[1:]

    def __len__(self) -> int:
        return max(self.config.steps // self.config.rounds, 1)

    def __iter__(self) -> Iterator[Batch]:
        config, cut = self.config, self.builder.history.segments
        per_step = max(config.batch // config.run, 1)
        random = np.random.default_rng((config.seed, self.round))
        runs = self._runs(self.round * len(self) * per_step)
        self.round += 1
        for _ in range(len(self)):
            segment = np.concatenate(list(islice(runs, per_step)))
            size = cut.end[segment] - cut.first[segment]
            most = random.choice(LIVE_AT_MOST)  # one limit a step, so that most steps are short
            live = random.integers(0, np.minimum(size, most + 1))
            yield self.builder.batch(segment, live, cut.end[segment])

    def _runs(self, skip: int) -> Iterator[Index]:
        """Runs of segments in random order for ever, from the `skip`-th on; each pass cuts users elsewhere."""
        length = self.config.run
        for number in count():
            random = np.random.default_rng((self.config.seed, number, 1))
            shift = random.integers(0, length, len(self.first))
            places = (-(-(self.end - self.first + shift) // length)) * (self.end > self.first)
            user, place = spread(np.zeros(len(places), np.int64), places)
            order = random.permutation(len(user))
            for index in order[skip:]:
                begin = self.first[user[index]] - shift[user[index]] + place[index] * length
                yield self.examples[max(begin, self.first[user[index]]) : min(begin + length, self.end[user[index]])]
            skip = max(skip - len(order), 0)


class Fit(lightning.LightningModule):
    """One model, its loss and its validation metric."""

    def __init__(self, model: Model, config: TrainingConfig, steps: Steps) -> None:
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

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the data where the checkpoint stopped."""
        self.steps.round = checkpoint["epoch"] + 1

    def configure_optimizers(self) -> Any:
        """AdamW under a one-cycle schedule."""
        optimizer = torch.optim.AdamW(
            self.parameters(), self.config.learning_rate, weight_decay=self.config.weight_decay
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.config.learning_rate, total_steps=self.config.rounds * len(self.steps) + 1, pct_start=0.1
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def mean(found: list[np.ndarray]) -> float:
    """Mean over the examples that have a target; 0 where there are none."""
    values = np.concatenate(found) if found else np.zeros(0)
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else 0.0


def quality(model: Model, builder: Builder, segment: Index, target_end: Index) -> float:
    """NDCG@10 of a model on the validation sessions that `split.first_after` gives."""
    model.eval()
    with torch.no_grad():
        found = [
            ndcg(batch_scores(model, batch).numpy(), batch.target_example.numpy(), batch.target_row.numpy())
            for batch in batches(builder, segment, target_end)
        ]
    return mean(found)


class Bar(Callback):
    """One line on stderr: steps taken, and the newest validation."""

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        """Draw it again."""
        total = module.config.rounds * len(module.steps)
        done = trainer.global_step
        filled = 24 * done // total
        ndcg = float(trainer.callback_metrics.get("ndcg", 0.0))
        sys.stderr.write(
            f"\rtraining {'█' * filled}{'·' * (24 - filled)} {done:,}/{total:,} steps, NDCG@10 {ndcg:.4f} "
        )
        sys.stderr.flush()

    def on_train_end(self, trainer: Any, module: Any) -> None:
        """Leave the line empty."""
        sys.stderr.write("\r\033[K")


def fit(model: Model, builder: Builder, split: Split, config: TrainingConfig, folder: Path, progress: bool) -> float:
    """Train, keeping the best round's weights in `model` and the newest checkpoint in `folder`.

    Interrupted and called again with the same folder, it goes on from the last round.

    Returns:
        The best round's NDCG@10 on the validation sessions.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    lightning.seed_everything(config.seed, verbose=False)
    torch.set_num_threads(max((os.cpu_count() or 1) // 2, 1))  # steps are small: with a thread a core they wait longer
    steps = Steps(builder, split, config)
    validation: Any = list(batches(builder, *first_after(builder, split.validation_us, split.until_us)))
    module = Fit(model, config, steps)
    best = ModelCheckpoint(folder, "best", monitor="ndcg", mode="max", save_last=True, enable_version_counter=False)
    stop = EarlyStopping("ndcg", mode="max", patience=config.patience)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(
            max_epochs=config.rounds,
            accelerator="auto",
            logger=False,
            callbacks=[best, stop, *([Bar()] if progress else [])],
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            gradient_clip_val=1.0,
        )
        last = folder / "last.ckpt"
        with _interruptible():
            trainer.fit(
                module,
                torch.utils.data.DataLoader(steps, batch_size=None),
                torch.utils.data.DataLoader(validation, batch_size=None),
                ckpt_path=str(last) if last.is_file() else None,
            )
    kept = torch.load(best.best_model_path, weights_only=False)["state_dict"]
    model.load_state_dict({name.removeprefix("model."): value for name, value in kept.items()})
    return float(best.best_model_score or 0.0)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C be a KeyboardInterrupt: Lightning ignores later ones and exits the process instead."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as ended:
        if is_interrupt(ended):
            raise KeyboardInterrupt from None
        raise
    finally:
        signal.signal(signal.SIGINT, handler)
