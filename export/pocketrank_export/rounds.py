"""Rounds of steps, by Lightning: on which devices, what is judged and kept after each, and how they are interrupted.

Not what is trained in which order, which `training` says.
"""

import logging
import math
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed
from torch.multiprocessing.spawn import ProcessRaisedException

from pocketrank import errors
from pocketrank.errors import BadConfig, Diverged, NotReady, is_interrupt
from pocketrank_export.examples import Batch
from pocketrank_export.heads import Head
from pocketrank_export.model import Model
from pocketrank_export.settings import TrainingConfig
from pocketrank_export.steps import Steps
from pocketrank_export.together import launched, leads, led

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import lightning
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, WeightAveraging


@dataclass(frozen=True)
class Best:
    """The best round.

    Attributes:
        weights: the model's, by name.
        quality: the head's metric on the validation questions.
    """

    weights: dict[str, Tensor]
    quality: float


def best_round(
    model: Model,
    head: Head,
    config: TrainingConfig,
    steps: Steps,
    validation: list[Batch],
    folder: Path,
    *,
    progress: bool,
    advice: str,
) -> Best:
    """Take all steps, or those that an interrupted call left, with the newest checkpoint and the best in `folder`.

    Where a loss or a weight is no longer finite it ends, says so with the advice, and the best round before counts.

    Args:
        model: what is trained.
        head: its loss, and what is best.
        config: [training].
        steps: batches of one round after the other.
        validation: what judges each.
        folder: for checkpoints.
        progress: whether to draw it.
        advice: what is said besides, where numbers are not finite.

    Returns:
        It.

    Raises:
        Diverged: that happened before the first round was whole.
        BadConfig: there are not so many devices.
        NotReady: another process that trains along has ended.
    """
    lightning.seed_everything(config.seed, verbose=False)
    started = launched()
    cores = (os.cpu_count() or 1) // (1 if started is None else started.processes)
    torch.set_num_threads(max(cores // 2, 1))  # steps are small: with a thread a core they wait longer
    module = Fit(model, head, config, config.rounds * len(steps))
    best = ModelCheckpoint(folder, "best", monitor="quality", mode="max", save_last=True, enable_version_counter=False)
    stop = EarlyStopping("quality", mode="max", patience=config.patience)
    last, kept = folder / "last.ckpt", folder / "best.ckpt"
    with warnings.catch_warnings():
        _hush()
        callbacks = [Average(config.average), Resumed(steps), best, stop, *([Bar()] if progress else [])]
        trainer = _trainer(config, callbacks)
        with _interruptible(trainer), _last_whole_round(kept, advice), _said_in_one_process(), _until_one_ends():
            loaded: Any = validation
            trainer.fit(
                module,
                torch.utils.data.DataLoader(steps, batch_size=None),
                torch.utils.data.DataLoader(loaded, batch_size=None),
                ckpt_path=str(last) if led(last.is_file) else None,
            )
    found = torch.load(kept, map_location="cpu", weights_only=False)
    weights = {name.removeprefix("model."): value for name, value in found["state_dict"].items()}
    return Best(weights, float(found["callbacks"][best.state_key]["best_model_score"]))


class Fit(lightning.LightningModule):
    """One model under its head's loss and validation metric."""

    def __init__(self, model: Model, head: Head, config: TrainingConfig, steps: int) -> None:
        super().__init__()
        self.model, self.head, self.config, self.steps = model, head, config, steps  # steps of all rounds
        self.validation: list[Batch] = []
        self.is_finite = True

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Come up in a process of its own."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        _hush()

    def training_step(self, batch: Batch) -> Tensor:
        """The head's loss."""
        loss = self.head.loss(self.model, batch, self.config.unknown)
        if launched() is None:
            self.hold("the loss", loss)
        else:  # all must stop at once
            self.is_finite = self.is_finite and bool(torch.isfinite(loss.detach()))
        self.log("loss", loss, prog_bar=True, batch_size=len(batch))
        return loss

    def validation_step(self, batch: Batch) -> None:
        """Collect."""
        self.validation.append(batch)

    def judge(self) -> None:
        """Log the head's metric, if all is finite; this comes before the round's checkpoint."""
        if launched() and not self.trainer.strategy.reduce_boolean_decision(self.is_finite):
            self.hold("the loss", torch.tensor(math.nan))
        for name, value in self.model.named_parameters():
            self.hold(f"weight {name}", value)
        quality = self.head.quality(self.model, self.validation)
        self.hold(f"the validation's {self.head.metric}", torch.tensor(quality))
        self.log("quality", quality, prog_bar=True, sync_dist=True)  # every process judged it all
        self.validation.clear()

    def hold(self, what: str, value: Tensor) -> None:
        """Stop where something is not finite.

        Raises:
            Diverged: it is not.
        """
        if not torch.isfinite(value.detach()).all():
            raise Diverged(
                f"training, round {self.current_epoch + 1} of {self.config.rounds}: {what} is not finite; "
                f"lower [training] learning_rate, now {self.config.learning_rate:g}"
            )

    def configure_optimizers(self) -> Any:
        """AdamW under a one-cycle schedule, whose way up takes a tenth of it, and a step at least."""
        total = self.steps + 1
        optimizer = torch.optim.AdamW(
            self.parameters(), self.config.learning_rate, weight_decay=self.config.weight_decay
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.config.learning_rate, total_steps=total, pct_start=max(0.1, 2 / total)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Average(WeightAveraging):
    """The mean of the newest weights: it is what is judged and kept, and depends on no few batches.

    Source: Polyak and Juditsky, SIAM J. Control and Optimization 30(4), 1992.
    """

    def __init__(self, steps: int) -> None:
        super().__init__(use_buffers=False, avg_fn=partial(_nearer, steps))

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Judge it, before training's own weights come back."""
        pl_module.judge()
        super().on_validation_epoch_end(trainer, pl_module)


def _nearer(steps: int, mean: Tensor, new: Tensor, taken: Tensor | int) -> Tensor:
    """A step's share in the mean of about the newest `steps`; of the first ones, which are still on their way, less."""
    return mean.lerp(new, max(1.0 / steps, 1.0 / (10.0 + float(taken))))


class Resumed(Callback):
    """Goes on with the data where a checkpoint stopped."""

    def __init__(self, steps: Steps) -> None:
        self.steps = steps

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """The round after."""
        self.steps.round = checkpoint["epoch"] + 1


class Bar(Callback):
    """One line on stderr: steps taken, and the newest validation."""

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        """Draw it again."""
        if not trainer.is_global_zero:
            return
        done, total = trainer.global_step, module.steps
        filled = 24 * done // total
        found = f"{module.head.metric} {float(trainer.callback_metrics.get('quality', 0.0)):.4f}"
        sys.stderr.write(f"\rtraining {'█' * filled}{'·' * (24 - filled)} {done:,}/{total:,} steps, {found} ")
        sys.stderr.flush()

    def on_train_end(self, trainer: Any, module: Any) -> None:
        """Leave the line empty."""
        if trainer.is_global_zero:
            sys.stderr.write("\r\033[K")

    def on_exception(self, trainer: Any, module: Any, _: BaseException) -> None:
        """Leave it empty for what is to be said."""
        self.on_train_end(trainer, module)


def _trainer(config: TrainingConfig, callbacks: list[Callback]) -> lightning.Trainer:
    """Lightning's, on one device in this process, on several in one process each: that ends with `fit`.

    Where `torchrun` started this process and others, it is one of them, on however many machines.

    Raises:
        BadConfig: there are not so many.
    """
    started = launched()
    devices, machines = started or (config.devices or max(torch.cuda.device_count(), 1), 1)
    strategy = "ddp" if started else "ddp_spawn" if devices > 1 else "auto"
    if strategy != "auto":  # a step may have no segment to encode, or no live event, and so leave weights unused
        strategy = f"{strategy}_find_unused_parameters_true"
    try:
        return lightning.Trainer(
            max_epochs=config.rounds,
            accelerator="auto",
            devices=devices,
            num_nodes=machines,
            strategy=strategy,
            use_distributed_sampler=False,  # `Steps` shares, and all validate
            logger=False,
            callbacks=callbacks,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            gradient_clip_val=1.0,
        )
    except (MisconfigurationException, ValueError) as error:
        said = " ".join(str(error).split())
        if started:
            raise BadConfig(f"torchrun --nproc-per-node {devices}: {said}; start fewer") from None
        raise BadConfig(f"[training] devices = {devices}: {said}; ask for fewer, or 0 for all there are") from None


def _hush() -> None:
    """Let Lightning, and torch in processes that start from here, say only what is wrong."""
    for name in ("lightning.pytorch", "lightning.fabric", "torch.multiprocessing"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    warnings.simplefilter("ignore")


@contextmanager
def _said_in_one_process() -> Iterator[None]:
    """Where one of several processes ended with an error of ours, raise that: only its traceback comes from there."""
    try:
        yield
    except ProcessRaisedException as ended:
        name, _, said = str(ended).rstrip().rpartition("\n")[2].partition(": ")
        kind = getattr(errors, name.rpartition(".")[2], None)
        if kind is None:
            raise
        raise kind(said) from None


@contextmanager
def _until_one_ends() -> Iterator[None]:
    """Say in a line that another process that trains along has ended, which a lost connection is the sign of."""
    try:
        yield
    except RuntimeError as error:
        if launched() is None or not (isinstance(error, distributed.DistError) or "gloo" in str(error)):
            raise
        raise NotReady(
            "training: another process that trains along has ended; see what it said, and start them all again to go on"
        ) from None


@contextmanager
def _last_whole_round(kept: Path, advice: str) -> Iterator[None]:
    """Where training left the finite numbers, be content with the best round before, if there is one, and say so."""
    try:
        yield
    except Diverged as error:
        if not led(kept.is_file):
            raise Diverged(f"{error}{advice}") from None
        if leads():
            sys.stderr.write(f"pocketrank: {error}{advice}; the best round before it is kept\n")


@contextmanager
def _interruptible(trainer: lightning.Trainer) -> Iterator[None]:
    """Let Ctrl-C be a KeyboardInterrupt: Lightning ignores later ones, exits, and leaves its processes behind."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as ended:
        if is_interrupt(ended):
            raise KeyboardInterrupt from None
        raise
    finally:
        signal.signal(signal.SIGINT, handler)
        for process in getattr(trainer.strategy.launcher, "procs", ()):
            process.kill()
