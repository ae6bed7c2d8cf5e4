"""Embeddings of fixed training and validation spectra, saved while a network trains (paper §6.1, figs. 2, 3)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from remap import sharding
from remap.config import ConfigError
from remap.network.resnet import ResNet1D
from remap.sampling.augment import Batch
from remap.sampling.batches import FinishedSource
from remap.store.atomic import named, read_arrays, save_arrays
from remap.train.loop import draw_batch
from remap.train.state import TrainState

PARTS = ("train", "val")


@dataclasses.dataclass(frozen=True)
class EmbeddingSettings:
    """What is saved for the maps of the embeddings, and how they are drawn (config section `embeddings`).

    Attributes:
      epochs: after which the embeddings are saved; 0 is the untrained network; () saves nothing.
      size: spectra of each part (training, validation).
      perplexity: of t-SNE, about the number of neighbours that each spectrum should have.
    """

    epochs: tuple[int, ...] = ()
    size: int = 500
    perplexity: float = 30.0

    def __post_init__(self) -> None:
        if any(epoch != int(epoch) or epoch < 0 for epoch in self.epochs):
            raise ConfigError(f"embeddings.epochs must be whole numbers from 0, found {self.epochs}")
        if self.size < 2 or self.perplexity <= 0:
            raise ConfigError(
                f"embeddings: expected a size of 2 or more and a positive perplexity, found {self.size} and "
                f"{self.perplexity}"
            )


class FixedSpectra(NamedTuple):
    """Spectra that are embedded again and again."""

    batches: Sequence[Batch]  # all of one shape; together at least `labels` has rows
    labels: np.ndarray  # float[S, L], NaN = unknown


class Embedded(NamedTuple):
    """Embeddings of a set of spectra."""

    embedding: np.ndarray  # float32[L, S, F]
    labels: np.ndarray  # float32[S, L]


class EpochEmbeddings(NamedTuple):
    """What one file holds."""

    epoch: int
    parts: dict[str, Embedded]  # "train", and "val" where there are held-out spectra


def fixed_spectra(source: FinishedSource, key: Array, size: int) -> FixedSpectra:
    """The first `size` spectra of a source."""
    batches, labels = [], []
    while sum(map(len, labels)) < size:
        step = jnp.asarray(len(batches), jnp.int32)
        batches.append(draw_batch(source, key, step))
        labels.append(sharding.to_host(draw_batch(source.spectra, key, step).labels))
    return FixedSpectra(batches, np.concatenate(labels)[:size])


def embedding_recorder(
    model: ResNet1D, spectra: Mapping[str, FixedSpectra], folder: str | Path, epochs: Sequence[int]
) -> Callable[[int, TrainState], None]:
    """An `on_epoch` for `loop.fit` that writes `embeddings_epoch_EEEE.npz` after each of the given epochs.

    The network is the one of that epoch (not the average over the cycles), without dropout, with its running
    batch statistics.

    Args:
      spectra: part ("train", "val") -> spectra.
      folder: receives the files, each whole or not at all.
    """

    @jax.jit
    def embed(variables: dict, batch: Batch) -> Array:
        return model.apply(variables, batch.flux, batch.valid, train=False, running=True).embedding

    def record(epoch: int, state: TrainState) -> None:
        if epoch not in epochs:
            return
        variables = {"params": state.params, "batch_stats": state.model_state}
        arrays = {}
        for part, (batches, labels) in spectra.items():
            found = np.concatenate([sharding.to_host(embed(variables, batch)) for batch in batches], axis=1)
            arrays[f"{part}_embedding"] = found[:, : len(labels)]
            arrays[f"{part}_labels"] = labels
        save_arrays(Path(folder) / f"embeddings_epoch_{epoch:04d}.npz", epoch=np.asarray(epoch), **arrays)

    return record


def read_embeddings(folder: str | Path) -> list[EpochEmbeddings]:
    """What `embedding_recorder` has written into a folder, by epoch; [] for nothing."""
    found = []
    for path in Path(folder).glob("embeddings_epoch_*.npz"):
        a = read_arrays(path, ("epoch",), "delete it to draw the others")
        with named(path, "delete it to draw the others"):
            parts = {
                part: Embedded(a[f"{part}_embedding"], a[f"{part}_labels"])
                for part in PARTS
                if f"{part}_labels" in a
            }
            found.append(EpochEmbeddings(int(a["epoch"]), parts))
    return sorted(found, key=lambda each: each.epoch)
