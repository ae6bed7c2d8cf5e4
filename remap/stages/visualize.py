"""Maps of the embeddings that pre-training saved: has the network ordered the spectra (paper §6.1, figs. 2, 3)?"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from astropy.table import Table
from scipy.spatial import cKDTree

from remap.config import record
from remap.labels import LabelBins
from remap.pmf.metrics import decimals
from remap.report.maps import embedding_maps
from remap.store.tables import ecsv_writer
from remap.store.workdir import read_preprocessing, stage_folder
from remap.train.embeddings import Embedded, EmbeddingSettings, EpochEmbeddings, read_embeddings
from remap.writing import check_writable, write_files

logger = logging.getLogger(__name__)

ROWS = {"train": "training", "val": "validation"}


def visualize(config: ml_collections.ConfigDict, workdir: str | Path) -> Table:
    """Draws the embeddings that pre-training saved (`config.embeddings`) as t-SNE maps.

    Writes into visualize/: neighbours.ecsv and, where matplotlib and scikit-learn are there, tsne_ARM_LABEL.png.
    t-SNE never sees a label. Training and validation spectra of an epoch are mapped together, so that their
    places can be compared; those of different epochs cannot.

    Returns:
      One row per arm, label, epoch and part: `n` spectra, and how well neighbours agree, which a picture tells
      no one exactly: `neighbour`, the median difference between a spectrum's label and that of the training
      spectrum nearest to it in the embedding, and `chance`, the median difference to any training spectrum, in
      the label's unit.

    Raises:
      FileNotFoundError: pre-training saved no embeddings.
    """
    workdir = Path(workdir)
    settings = record(EmbeddingSettings, config.embeddings, "embeddings")
    preprocessing = read_preprocessing(workdir)
    labels = preprocessing.labels
    saved = {arm: read_embeddings(stage_folder(workdir, "pretrain", arm)) for arm in preprocessing.arms}
    saved = {arm: epochs for arm, epochs in saved.items() if epochs}
    if not saved:
        raise FileNotFoundError(
            f"{workdir}: expected embeddings_epoch_*.npz of pre-training, found none; set embeddings.epochs and "
            "pre-train in a fresh folder"
        )
    out = workdir / "visualize"
    check_writable(out / "neighbours.ecsv")
    rows = [
        {"arm": arm, "label": b.name, "epoch": each.epoch, "part": part}
        | neighbour_difference(each.parts["train"], found, j, same=part == "train")
        for arm, epochs in saved.items()
        for j, b in enumerate(labels)
        for each in epochs
        for part, found in each.parts.items()
    ]
    table = Table(rows=rows)
    for name in ("neighbour", "chance"):
        table[name].info.format = ".3f"
    write_files({out / "neighbours.ecsv": ecsv_writer(table)})
    try:
        for arm, epochs in saved.items():
            for j, b in enumerate(labels):
                own = [r for r in rows if (r["arm"], r["label"]) == (arm, b.name)]
                path = out / f"tsne_{arm}_{b.name}.png"
                _draw(path, epochs, j, b, own, settings, config.seed, f"arm {arm}")
    except ImportError as error:
        logger.warning("visualize: no maps: %s", error)
    return table


def neighbour_difference(train: Embedded, found: Embedded, label: int, *, same: bool) -> dict[str, float]:
    """How far the label of a spectrum is from that of its neighbour in the embedding.

    Args:
      train, found: the spectra that neighbours are sought among, and for.
      label: index of the label and of its embedding.
      same: `found` is `train`, and no spectrum is its own neighbour.

    Returns:
      `n`, `neighbour` and `chance` as in `visualize`, over spectra whose label is known; NaN without any.
    """
    known = np.isfinite(train.labels[:, label])
    wanted = np.isfinite(found.labels[:, label])
    theirs, ours = train.labels[known, label], found.labels[wanted, label]
    n = len(ours)
    if n == 0 or len(theirs) <= same:
        return {"n": n, "neighbour": float("nan"), "chance": float("nan")}
    tree = cKDTree(train.embedding[label][known])
    _, near = tree.query(found.embedding[label][wanted], k=2 if same else 1)
    apart = np.abs(ours[:, None] - theirs[None])
    if same:
        # Equal embeddings may put another spectrum before a spectrum itself.
        near = np.where(near[:, 0] == np.arange(n), near[:, 1], near[:, 0])
        apart = apart[~np.eye(n, dtype=bool)]
    return {
        "n": n,
        "neighbour": float(np.median(np.abs(ours - theirs[near]))),
        "chance": float(np.median(apart)),
    }


def tsne(points: np.ndarray, *, perplexity: float, seed: int) -> np.ndarray:
    """Points of any dimension in the plane by t-SNE (van der Maaten & Hinton 2008), starting from their PCA.

    Args:
      points: float[S, F].
      perplexity: about the number of neighbours that count, below S.

    Returns:
      float[S, 2]. Only near and far mean something; axes and scale do not.

    Raises:
      ImportError: scikit-learn is missing.
    """
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise ImportError("t-SNE needs scikit-learn: pip install 'deep-remap[plots]'") from error
    return TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(points)


def _draw(
    path: Path,
    epochs: list[EpochEmbeddings],
    j: int,
    label: LabelBins,
    rows: list[dict[str, Any]],
    settings: EmbeddingSettings,
    seed: int,
    title: str,
) -> None:
    """The figure of one arm and of label `j`."""
    maps, notes = {}, {}
    for each in epochs:
        name = f"epoch {each.epoch}"
        ends = np.cumsum([len(found.labels) for found in each.parts.values()])[:-1]
        joined = np.concatenate([found.embedding[j] for found in each.parts.values()])
        places = np.split(tsne(joined, perplexity=settings.perplexity, seed=seed), ends)
        maps[name] = {ROWS[part]: place for part, place in zip(each.parts, places, strict=True)}
        here = {r["part"]: r for r in rows if r["epoch"] == each.epoch}
        notes[name] = {ROWS[part]: _note(here[part], label.unit) for part in each.parts}
    embedding_maps(
        path,
        maps,
        {ROWS[part]: found.labels[:, j] for part, found in epochs[0].parts.items()},
        label=label.name,
        unit=label.unit,
        notes=notes,
        title=f"t-SNE of the embedding, {title}\nΔ: median difference to the label of the nearest training spectrum",
    )


def _note(row: dict[str, Any], unit: str) -> str:
    digits = decimals(row["neighbour"])
    return f"Δ {row['neighbour']:.{digits}f} {unit} (by chance {row['chance']:.{digits}f})"
