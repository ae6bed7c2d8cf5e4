"""Saved embeddings: those of the network of that epoch, for fixed spectra, at no cost to the training."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny

from configs import common
from remap.config import record
from remap.labels import bin_index, padded_edges
from remap.preprocess.description import make_preprocessing
from remap.stages import common as training
from remap.stages import pretrain as stage
from remap.stages.pretrain import _embedding_recorder, _pretrain_arm, pretrain, pretraining
from remap.store import checkpoint
from remap.store.records import read_records
from remap.store.workdir import check_prepared, stage_folder
from remap.train import embeddings
from remap.train.embeddings import EmbeddingSettings, read_embeddings
from remap.train.loop import Run, draw_batch, run_keys
from remap.train.optim import make_optimizer
from remap.train.state import init_state

SIZE = 12  # of each part; not a multiple of the batch of 8


@pytest.fixture(scope="module")
def start(tiny_data, tiny_workdir):
    """Where the pre-training of arm A began."""
    config = tiny.config(tiny_data)
    return pretraining(config, tiny_workdir, check_prepared(config, tiny_workdir), "A")


@pytest.fixture(scope="module")
def saved(tiny_workdir):
    return read_embeddings(tiny_workdir / "pretrain" / "A")


def batches(start, part):
    """The spectra, by their definition: the first that are trained on, or as many from held-out cells."""
    if part == "train":
        key, source = run_keys(start.fit_key).batches, start.source
    else:
        held = np.resize(start.held_out, start.library.cells.shape)
        key, source = start.validation_key, start.drawing_from(held)
    return [draw_batch(source, key, jnp.asarray(i, jnp.int32)) for i in range(2)]


def variables_at(workdir, start, epoch):
    """The network after an epoch: the fresh one, or that of a checkpoint."""
    if epoch == 0:
        return start.variables
    optimizer = Run(start.settings, start.steps, start.fit_key, workdir, {}, "").optimizer()
    template = jax.tree.map(
        np.asarray, init_state(start.variables["params"], start.variables["batch_stats"], optimizer)
    )
    with checkpoint.open_manager(workdir / "pretrain" / "A" / "checkpoints", keep=2) as manager:
        args = checkpoint.ocp.args.Composite(state=checkpoint.ocp.args.StandardRestore(template))
        state = manager.restore(epoch * start.steps, args=args)["state"]
    return {"params": state.params, "batch_stats": state.model_state}


def test_files_are_there_for_the_epochs_that_were_asked_for(tiny_workdir, saved):
    for arm in "AB":
        found = sorted(p.name for p in (tiny_workdir / "pretrain" / arm).glob("*.npz"))
        assert found == [f"embeddings_epoch_{epoch:04d}.npz" for epoch in (0, 2, 4)]
    assert [each.epoch for each in saved] == [0, 2, 4]
    for each in saved:
        assert list(each.parts) == ["train", "val"]
        for part in each.parts.values():
            assert part.embedding.shape == (3, SIZE, 4)
            assert part.labels.shape == (SIZE, 3)


@pytest.mark.parametrize("epoch", [0, 2, 4])
def test_saved_embeddings_are_what_the_network_of_that_epoch_gives(tiny_workdir, start, saved, epoch):
    variables = variables_at(tiny_workdir, start, epoch)
    apply = jax.jit(
        lambda b: start.arm.model.apply(variables, b.flux, b.valid, train=False, running=True).embedding
    )
    (each,) = [e for e in saved if e.epoch == epoch]
    for part, found in each.parts.items():
        expected = [apply(b) for b in batches(start, part)]
        np.testing.assert_allclose(found.embedding, np.concatenate(expected, axis=1)[:, :SIZE], atol=1e-5)


def test_the_network_moves_and_the_spectra_do_not(saved):
    for part in ("train", "val"):
        found = [each.parts[part] for each in saved]
        assert np.abs(found[0].embedding - found[1].embedding).max() > 1e-2
        assert np.abs(found[1].embedding - found[2].embedding).max() > 1e-3
        for other in found[1:]:
            np.testing.assert_array_equal(other.labels, found[0].labels)


def test_labels_are_those_of_the_spectra(tiny_data, start, saved):
    """Their bins are the classes of the batches; validation spectra come from held-out cells, others do not."""
    preprocessing = make_preprocessing(tiny.config(tiny_data))
    edges = jnp.asarray(padded_edges(preprocessing.labels), jnp.float32)
    nodes = np.asarray(start.library.labels)
    for part, cells in (("train", np.asarray(start.library.cells)), ("val", start.held_out)):
        labels = saved[0].parts[part].labels
        classes = np.concatenate([b.classes for b in batches(start, part)], axis=1)[:, :SIZE]
        np.testing.assert_array_equal(bin_index(jnp.asarray(labels), edges), classes)
        low, high = nodes[cells].min(axis=1), nodes[cells].max(axis=1)  # [cells, labels]
        inside = (labels[:, None] >= low - 1e-3) & (labels[:, None] <= high + 1e-3)
        assert inside.all(axis=2).any(axis=1).all()
    assert len(start.held_out) == 2  # of eight cells: the two lists share no inner point


def test_saving_nothing_is_the_default_and_trains_the_same_network(
    tiny_data, tiny_prepared, tiny_workdir, tmp_path, monkeypatch
):
    assert common.get_config().embeddings.epochs == ()
    shutil.copytree(tiny_prepared, tmp_path / "work")
    config = tiny.config(tiny_data, embeddings__epochs=())
    with monkeypatch.context() as patch:
        for name in ("fixed_spectra", "embedding_recorder"):
            patch.setattr(stage, name, lambda *_: pytest.fail("spectra were made for nothing"))
        preprocessing = check_prepared(config, tmp_path / "work")
        settings = record(EmbeddingSettings, config.embeddings, "embeddings")
        start = pretraining(config, tmp_path / "work", preprocessing, "A")
        _pretrain_arm(start, settings, stage_folder(tmp_path / "work", "pretrain", "A"))
    folders = [w / "pretrain" / "A" for w in (tmp_path / "work", tiny_workdir)]
    assert not list(folders[0].glob("*.npz"))
    records = [
        [{k: v for k, v in r.items() if k != "seconds"} for r in read_records(f / "metrics.jsonl")]
        for f in folders
    ]
    assert records[0] == records[1]
    ours, theirs = (jax.tree.leaves(checkpoint.load_final(f / "final")[0]) for f in folders)
    assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_finished_network_is_not_refused_for_other_embeddings(tiny_data, tiny_workdir, monkeypatch):
    monkeypatch.setattr(training, "fit", lambda *_, **__: pytest.fail("trained again"))
    pretrain(tiny.config(tiny_data, embeddings__epochs=(1,), embeddings__size=5), tiny_workdir)


def test_epochs_beyond_the_run_are_told(tiny_data, start, tmp_path, caplog):
    config = tiny.config(tiny_data, embeddings__epochs=(4, 5, 50))
    with caplog.at_level("WARNING"):
        settings = record(EmbeddingSettings, config.embeddings, "embeddings")
        assert _embedding_recorder(settings, start, tmp_path, "pretrain A") is not None
    assert "pretrain A: no embeddings after the epochs [5, 50], the run has 4" in caplog.text


def test_without_held_out_spectra_there_is_one_part(tiny_data, start, tmp_path):
    config = tiny.config(tiny_data, embeddings__epochs=(3,))
    alone = start._replace(held_out=start.held_out[:0])
    save = _embedding_recorder(
        record(EmbeddingSettings, config.embeddings, "embeddings"), alone, tmp_path, "pretrain A"
    )
    optimizer = make_optimizer(((".*", 1.0),), lambda _: 0.0, clip_norm=None)
    state = init_state(start.variables["params"], start.variables["batch_stats"], optimizer)
    save(2, state)
    assert not list(tmp_path.iterdir())  # nobody asked for this epoch
    save(3, state)
    (found,) = read_embeddings(tmp_path)
    assert (found.epoch, list(found.parts)) == (3, ["train"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": (0, -1)}, "embeddings.epochs must be whole numbers from 0"),
        ({"epochs": (0.5,)}, "embeddings.epochs must be whole numbers from 0"),
        ({"size": 1}, "expected a size of 2 or more"),
        ({"perplexity": 0.0}, "a positive perplexity"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        EmbeddingSettings(**{"epochs": (0,), "size": 10, "perplexity": 5.0} | settings)


def test_nothing_saved_reads_as_nothing(tmp_path):
    assert embeddings.read_embeddings(tmp_path) == []
