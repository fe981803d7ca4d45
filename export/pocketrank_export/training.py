"""Fit a model: first item memory beside popularity, then everything, starting from there.

The baseline "item memory alone" of the evaluation goes through both stages, too. Loops, checkpoints and progress are
Lightning's.
"""

import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.spawn import ProcessRaisedException

from pocketrank import errors
from pocketrank.atomic import file_beside
from pocketrank.errors import BadConfig, Diverged, NotReady, is_interrupt
from pocketrank_export.asked import Asked
from pocketrank_export.examples import Batch, Builder
from pocketrank_export.heads import Head
from pocketrank_export.model import Model
from pocketrank_export.settings import TrainingConfig
from pocketrank_export.split import Split
from pocketrank_export.steps import Steps
from pocketrank_export.together import launched, leads, wait_for_all

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import lightning
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, WeightAveraging

MEMORY_RATE = 3e-3  # least learning rate of a model without a fusion: its weights are few
LENGTHS = (1.0, 0.75, 0.5, 0.25)  # of a state, as a share of what training made it
LARGE = 1e6  # scores above this may be why numbers overflow


class Fit(lightning.LightningModule):
    """One model under its head's loss and validation metric."""

    def __init__(self, model: Model, head: Head, config: TrainingConfig, steps: int) -> None:
        super().__init__()
        self.model, self.head, self.config, self.steps = model, head, config, steps  # steps of all rounds
        self.validation: list[Batch] = []

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Come up in a process of its own."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        _hush()

    def training_step(self, batch: Batch) -> Tensor:
        """The head's loss."""
        loss = self.head.loss(self.model, batch, self.config.unknown)
        if launched() is None:  # else all must stop at once: the weights, which they share, are held at the round's end
            self.hold("the loss", loss)
        self.log("loss", loss, prog_bar=True, batch_size=len(batch))
        return loss

    def validation_step(self, batch: Batch) -> None:
        """Collect."""
        self.validation.append(batch)

    def judge(self) -> None:
        """Log the head's metric, if all is finite; this comes before the round's checkpoint."""
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


def quality(model: Model, head: Head, asked: Asked) -> float:
    """The head's metric of a model on some questions."""
    model.eval()
    with torch.no_grad():
        return head.quality(model, (part.batch() for part in asked.parts()))


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


class OneDisk(Callback):
    """Holds machines that train together to a folder that they all see: they start from what one of them wrote."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Before anything is read; all stop where one must."""
        mark = self.folder / "began"
        if trainer.is_global_zero:
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()
        wait_for_all()
        if not trainer.strategy.reduce_boolean_decision(mark.is_file()):
            raise NotReady(
                f"{self.folder}: not every machine sees what the first one writes there; put the project on a disk "
                "that all of them share, and start them in it again"
            )


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
        sys.stderr.write("\r\033[K")

    def on_exception(self, trainer: Any, module: Any, _: BaseException) -> None:
        """Leave it empty for what is to be said."""
        self.on_train_end(trainer, module)


def fit_memory(
    alone: Model, head: Head, builder: Builder, split: Split, config: TrainingConfig, folder: Path, *, progress: bool
) -> float:
    """The first stage: item memory alone, of a ranking model beside biases that stay at what is popular.

    Arguments, what it returns, and errors as of `fit`.
    """
    alone.bias.requires_grad_(alone.config.head != "next_item")
    quality = fit(alone, head, builder, split, config, folder, progress)
    alone.bias.requires_grad_(True)
    return quality


def fit_longer(
    alone: Model,
    before: float,
    head: Head,
    builder: Builder,
    split: Split,
    config: TrainingConfig,
    folder: Path,
    *,
    progress: bool,
) -> float:
    """The second stage of a model without a fusion, kept where it validates better than the first.

    Arguments and errors as of `fit`; `before` is what the first returned.

    Returns:
        The better of both.
    """
    first = deepcopy(alone.state_dict())
    quality = fit(alone, head, builder, split, config, folder, progress)
    if quality <= before:
        alone.load_state_dict(first)
    return max(quality, before)


def fit(
    model: Model,
    head: Head,
    builder: Builder,
    split: Split,
    config: TrainingConfig,
    folder: Path,
    progress: bool,
    steps: Steps | None = None,
) -> float:
    """Train, keeping the best round's weights in `model`, and in `folder` the newest checkpoint or, in the end, those.

    Interrupted and called again with the same folder, it goes on from the last round. Where a loss or a weight is no
    longer finite it ends, says so, and the best round before that is kept.

    Args:
        model: what is trained.
        head: its loss, and what is best.
        builder: examples of the log.
        split: what of it trains, and what validates.
        config: [training].
        folder: for checkpoints.
        progress: whether to draw it.
        steps: what is asked, where that is not what `Steps` makes of the above.

    Returns:
        The best round's metric on the validation questions.

    Raises:
        Diverged: that happened before the first round was whole.
        NotReady: not all of several machines see the folder.
    """
    finished = folder / "trained.pt"
    if finished.is_file():  # what comes after it was interrupted
        found = torch.load(finished, weights_only=True)
        model.load_state_dict(found["weights"])
        return float(found["quality"])
    lightning.seed_everything(config.seed, verbose=False)
    here = 1 if (started := launched()) is None else started.processes
    torch.set_num_threads(max((os.cpu_count() or 1) // 2 // here, 1))  # steps are small: with a thread a core they wait
    if model.fusion is None and model.config.head == "next_item":
        config = replace(config, learning_rate=max(config.learning_rate, MEMORY_RATE))
    steps = steps or Steps(builder, split, config)
    validation: Any = [part.batch() for part in split.validation(builder).parts()]
    module = Fit(model, head, config, config.rounds * len(steps))
    best = ModelCheckpoint(folder, "best", monitor="quality", mode="max", save_last=True, enable_version_counter=False)
    stop = EarlyStopping("quality", mode="max", patience=config.patience)
    last, kept = folder / "last.ckpt", folder / "best.ckpt"
    with warnings.catch_warnings():
        _hush()
        callbacks = [Average(config.average), Resumed(steps), best, stop]
        callbacks += [OneDisk(folder)] * (started is not None and started.machines > 1) + [Bar()] * progress
        trainer = _trainer(config, callbacks)
        with _interruptible(trainer), _last_whole_round(kept, builder), _said_in_one_process():
            trainer.fit(
                module,
                torch.utils.data.DataLoader(steps, batch_size=None),
                torch.utils.data.DataLoader(validation, batch_size=None),
                ckpt_path=str(last) if last.is_file() else None,
            )
    checkpoint = torch.load(kept, map_location="cpu", weights_only=False)
    model.load_state_dict({name.removeprefix("model."): value for name, value in checkpoint["state_dict"].items()})
    quality = shrunk(model, head, validation) or float(checkpoint["callbacks"][best.state_key]["best_model_score"])
    if leads():
        with file_beside(finished) as draft:
            torch.save({"weights": model.state_dict(), "quality": quality}, draft)
    wait_for_all()
    return quality


def shrunk(model: Model, head: Head, validation: list[Batch]) -> float:
    """Make the state as long as ranks best on the validation questions, at most as it is.

    What a state learned is in part noise of the log, and speaks against item memory as loudly as the rest.

    Returns:
        How well it ranks then; 0 where the state has no length of its own.
    """
    parts = [] if model.fusion is None else model.fusion.lengths()
    if not parts or model.config.head != "next_item":
        return 0.0
    model.eval()
    whole = [part.clone() for part in parts]
    found: dict[float, float] = {}
    with torch.no_grad():
        for length in LENGTHS:
            _set(parts, whole, length)
            found[length] = head.quality(model, validation)
        best = max(found, key=found.__getitem__)  # of equal ones the longest
        _set(parts, whole, best)
    return found[best]


def _set(parts: list[Tensor], whole: list[Tensor], length: float) -> None:
    for part, value in zip(parts, whole, strict=True):
        part.copy_(length * value)


def _trainer(config: TrainingConfig, callbacks: list[Callback]) -> lightning.Trainer:
    """Lightning's, on one device in this process, on several in one process each: that ends with `fit`.

    Where `torchrun` started this process and others, it is one of them, on however many machines.

    Raises:
        BadConfig: there are not so many.
    """
    # A step may have no segment to encode, or no live event: then some weights are not used in it.
    devices, machines, strategy = config.devices or max(torch.cuda.device_count(), 1), 1, "auto"
    if started := launched():
        (devices, machines), strategy = started, "ddp_find_unused_parameters_true"
    elif devices > 1:
        strategy = "ddp_spawn_find_unused_parameters_true"
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
    except MisconfigurationException as error:
        said = " ".join(str(error).split())
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
def _last_whole_round(kept: Path, builder: Builder) -> Iterator[None]:
    """Where training left the finite numbers, be content with the best round before, if there is one, and say so."""
    try:
        yield
    except Diverged as error:
        largest = float(builder.history.events.score.max(initial=0))
        advice = f", or scale the log's scores, the largest of which is {largest:.3g}" if largest > LARGE else ""
        if not kept.is_file():
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
