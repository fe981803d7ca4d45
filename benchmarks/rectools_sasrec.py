"""RecTools' SASRec, asked what `benchmarks.quality --data ml1m` asks: somebody else's hands on the same rival.

RecTools wants another numpy than Feast, so it has an environment of its own, and nothing of pocketrank's is in it:

    python3 -m venv rectools
    rectools/bin/pip install 'rectools[torch]==0.19.0' 'pyarrow==19.0.1'
    rectools/bin/python benchmarks/rectools_sasrec.py ../shared/data/ml1m_order.parquet

Each user's last film is ranked among all that they have not seen, from all those before; it says how well after every
few epochs, and so does not choose one. One thread; some 110 CPU seconds an epoch of 200 events.
"""

import argparse
import time
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning
import torch
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel
from rectools.models.nn.item_net import IdEmbeddingsItemNet


def main() -> None:
    """Train, and say how well it ranks on the way."""
    options = _options()
    torch.set_num_threads(1)
    pytorch_lightning.seed_everything(options.seed)
    log = pd.read_parquet(options.log).sort_values(["user_id", "timestamp"], kind="stable")
    last = log.groupby("user_id").tail(1)
    known = log.drop(last.index)
    seconds = pd.to_timedelta(known.groupby("user_id").cumcount(), unit="s")
    columns = {Columns.User: known.user_id, Columns.Item: known.item_id, Columns.Weight: 1.0}
    data = Dataset.construct(pd.DataFrame({**columns, Columns.Datetime: pd.Timestamp("2020-01-01") + seconds}))
    model: Any = None

    class Judged(pytorch_lightning.Callback):
        """Ranks after every few epochs."""

        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            """Say what it comes to."""
            epoch = trainer.current_epoch + 1
            if epoch % options.every == 0 or epoch == options.epochs:
                model.is_fitted = True
                found = ndcg(model.recommend(last.user_id.to_numpy(), data, k=10, filter_viewed=True), last)
                error = found.sem()
                hit = (found > 0).mean()
                said = f"NDCG@10 {found.mean():.4f} ± {error:.4f}, HR@10 {hit:.4f}, {time.process_time():.0f} CPU s"
                print(f"epoch {epoch}: {said}", flush=True)
                module.train()

    def trainer() -> pytorch_lightning.Trainer:
        return pytorch_lightning.Trainer(
            max_epochs=options.epochs,
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[Judged()],
        )

    model = SASRecModel(
        n_factors=64,
        n_blocks=2,
        n_heads=1,
        dropout_rate=0.2,
        session_max_len=options.window,
        loss="softmax",
        lr=options.learning_rate,
        batch_size=options.batch,
        epochs=options.epochs,
        dataloader_num_workers=0,
        item_net_block_types=(IdEmbeddingsItemNet,),
        get_trainer_func=trainer,
    )
    model.fit(data)


def ndcg(ranked: pd.DataFrame, last: pd.DataFrame) -> "pd.Series[float]":
    """Of each user, whose one target is the last film."""
    target = last.set_index("user_id").item_id
    hit = ranked[ranked[Columns.Item].to_numpy() == target.loc[ranked[Columns.User]].to_numpy()]
    found = pd.Series(0.0, index=target.index)
    found.loc[hit[Columns.User]] = 1 / np.log2(1 + hit[Columns.Rank].to_numpy())
    return found


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", help="ml1m_order.parquet")
    parser.add_argument("--window", type=int, default=200, help="newest events that it reads")
    parser.add_argument("--epochs", type=int, default=35)
    parser.add_argument("--every", type=int, default=5, help="epochs between two looks")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--batch", type=int, default=64, help="users a step")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
