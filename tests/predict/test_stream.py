"""Prediction in a stream: the same catalogue as at once, whatever happens on the way."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from helpers import tiny
from helpers.containers import KINDS, write_arrays

from remap import io, load, surveys
from remap.config import ConfigError
from remap.predict.catalogue import Flag, read_catalogue
from remap.predict.familiar import Sheets
from remap.predict.predictor import Predictor
from remap.predict.references import ReferenceSet
from remap.predict.shards import merge
from remap.predict.stream import StreamSettings, predict_stream
from remap.preprocess.stationary import StationaryMask
from remap.store.lock import LockedError, hold
from remap.writing import StorageError

HERE = StreamSettings(shard=8, workers=0)
COUNT = 12


@pytest.fixture
def files(tmp_path):
    """Twelve stars, two of one name, and a file that is none, among them."""
    for i in range(COUNT):
        tiny.write_table(tmp_path / "night" / tiny.DWARFS[i][0], *tiny.star(i))
    tiny.write_table(tmp_path / "other night" / tiny.DWARFS[3][0], *tiny.star(3))
    (tmp_path / "night" / "dwarf_05b.fits").write_text("no FITS")
    return [*io.list_files(tmp_path / "night", "*.fits"), tmp_path / "other night" / tiny.DWARFS[3][0]]


def created(folder):
    return json.loads((folder / "manifest.json").read_text())["created"]


def assert_whole(predictor, files, folder, **how):
    """The merged catalogue is, byte for byte, that of a prediction at once."""
    merged, once = folder.parent / "merged.fits", folder.parent / "once.fits"
    rows = merge(folder, merged, overwrite=True)
    predictor.predict_files(files, date=created(folder), **how).write(once, overwrite=True)
    assert merged.read_bytes() == once.read_bytes()
    return rows


def test_a_stream_gives_the_bytes_of_a_prediction_at_once(tiny_predictor, files, tmp_path):
    heard = []
    done = predict_stream(tiny_predictor, files, tmp_path / "parts", stream=HERE, progress=heard.append)
    assert (done.made, done.kept, done.failed, done.rows, done.bad) == (2, 0, (), COUNT + 2, 1)
    assert heard[-1].spectra == heard[-1].total == heard[-1].read == COUNT + 2
    assert assert_whole(tiny_predictor, files, tmp_path / "parts") == COUNT + 2
    found = read_catalogue(tmp_path / "merged.fits")
    assert np.flatnonzero(found.table["flags"] == Flag.UNREADABLE).tolist() == [6]
    assert "dwarf_05b.fits" in found.table["message"][6]

    merge(tmp_path / "parts", tmp_path / "merged.ecsv")
    once = tiny_predictor.predict_files(files, date=created(tmp_path / "parts"))
    once.write(tmp_path / "once.ecsv")
    for end in (".ecsv", "_pmf.ecsv"):
        assert (tmp_path / f"merged{end}").read_bytes() == (tmp_path / f"once{end}").read_bytes()

    with pytest.raises(FileExistsError, match=r"merged\.fits"):
        merge(tmp_path / "parts", tmp_path / "merged.fits")
    again = predict_stream(tiny_predictor, files, tmp_path / "parts", stream=HERE)
    assert (again.made, again.kept, again.rows) == (0, 2, 0)


def test_shards_in_parquet_are_merged_to_the_same_bytes(tiny_predictor, files, tmp_path):
    pytest.importorskip("pyarrow", reason="needs pyarrow (extra `parquet`)")
    folder, how = tmp_path / "parts", dataclasses.replace(HERE, shard_format="parquet")
    done = predict_stream(tiny_predictor, files, folder, stream=how)
    assert (done.made, done.failed, done.rows) == (2, (), COUNT + 2)
    names = [f"part-0000{k}{end}.parquet" for k in range(2) for end in ("", "_pmf")]
    assert sorted(path.name for path in folder.glob("part*")) == names
    assert assert_whole(tiny_predictor, files, folder) == COUNT + 2
    assert not list(tmp_path.glob(".merging*"))
    whole = read_catalogue(tmp_path / "once.fits")
    dataset = pytest.importorskip("pyarrow.dataset")
    table = dataset.dataset([str(folder / names[0]), str(folder / names[2])]).to_table(
        columns=["file", "teff"]
    )
    np.testing.assert_array_equal(table["teff"].to_numpy(), whole.table["teff"])
    found = read_catalogue(folder / names[0])
    assert found.table["file"].tolist() == whole.table["file"].tolist()[: len(found.table)]
    np.testing.assert_array_equal(found.pmfs["teff"], whole.pmfs["teff"][: len(found.table)])

    with pytest.raises(
        ConfigError, match=r"other settings.*shard_format: expected 'nothing', found 'parquet'"
    ):
        predict_stream(tiny_predictor, files, folder, stream=HERE)
    (folder / names[1]).write_bytes((folder / names[1]).read_bytes()[:-10])
    (folder / names[2]).unlink()
    (folder / ".part-00001_pmf.parquet.1.0123abcd.tmp").write_bytes(b"half")
    done = predict_stream(tiny_predictor, files, folder, stream=how)
    assert (done.made, done.kept) == (2, 0)
    assert sorted(path.name for path in folder.glob("*part*")) == names
    assert_whole(tiny_predictor, files, folder)


KILLED = """
import os, signal, sys
from remap import load
from remap.predict.stream import StreamSettings, predict_stream
import jax
jax.config.update("jax_compilation_cache_dir", sys.argv[1])
def die(now):
    if now.shards == 1:
        os.kill(os.getpid(), signal.SIGKILL)
predict_stream(load(sys.argv[2]), sys.argv[4:], sys.argv[3], progress=die,
               stream=StreamSettings(shard=4, workers=0))
"""


def test_what_a_kill_has_left_goes_on_to_the_same_bytes(tiny_workdir, files, tmp_path):
    folder, workdir = tmp_path / "parts", shutil.copytree(tiny_workdir, tmp_path / "work")
    predictor = load(workdir)
    command = [
        sys.executable,
        "-c",
        KILLED,
        jax.config.jax_compilation_cache_dir,
        workdir,
        folder,
        *files,
    ]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(tiny.REPOSITORY)}
    killed = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert killed.returncode == -9, killed.stderr
    there = sorted(path.name for path in folder.glob("part-*"))
    assert "part-00000.fits" in there
    assert "part-00003.fits" not in there
    (folder / ".part-00001.fits.1.0123abcd.tmp").write_bytes(b"half")
    done = predict_stream(predictor, files, folder, stream=StreamSettings(shard=4, workers=0))
    assert (done.made, done.kept) == (4 - len(there), len(there))
    assert not list(folder.glob(".*"))
    assert_whole(predictor, files, folder)


def test_a_shard_that_fails_is_tried_again_set_aside_and_made_by_the_next_run(
    tiny_predictor, files, tmp_path, monkeypatch
):
    tries, own = [], Predictor.predict_arms

    def fails(self, observed):
        if "night/dwarf_02.fits" in observed.names:
            tries.append(observed.names)
            raise FloatingPointError("a bad\nshard")
        return own(self, observed)

    stream = StreamSettings(shard=2, workers=0)
    folder = tmp_path / "parts"
    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "predict_arms", fails)
        done = predict_stream(tiny_predictor, files, folder, stream=stream)
    assert len(tries) == 2
    assert done.failed == ("part-00001.fits",)
    assert done.made == 6
    assert "FloatingPointError: a bad" in (folder / "part-00001.failed").read_text()
    with pytest.raises(ConfigError, match=r"1 parts are missing: part-00001\.fits \(shard\)"):
        merge(folder, tmp_path / "merged.fits")
    done = predict_stream(tiny_predictor, files, folder, stream=stream)
    assert (done.made, done.kept, done.failed) == (1, 6, ())
    assert not (folder / "part-00001.failed").exists()
    assert_whole(tiny_predictor, files, folder)


def test_a_run_without_hope_ends_with_the_reason(tiny_predictor, files, tmp_path, monkeypatch):
    def fails(self, observed):
        raise FloatingPointError("no device")

    monkeypatch.setattr(Predictor, "predict_arms", fails)
    with pytest.raises(RuntimeError, match="none of 10 shards could be made: no device"):
        predict_stream(tiny_predictor, files, tmp_path / "parts", stream=StreamSettings(shard=1, workers=0))


def test_processes_share_the_shards_of_a_folder(tiny_predictor, files, tmp_path):
    folder = tmp_path / "parts"
    share = {"shard": 4, "workers": 0, "process_count": 2}
    first = predict_stream(tiny_predictor, files, folder, stream=StreamSettings(**share, process_index=1))
    assert first.made == 2
    assert sorted(path.name for path in folder.glob("part-*")) == ["part-00001.fits", "part-00003.fits"]
    with pytest.raises(ConfigError, match="2 parts are missing"):
        merge(folder, tmp_path / "merged.fits")
    with hold(folder / "process-00001"), pytest.raises(LockedError, match="another run writes here"):
        # Of another process the folder is locked; this one holds it itself.
        subprocess_hold(folder / "process-00001")
    second = predict_stream(tiny_predictor, files, folder, stream=StreamSettings(**share))
    assert second.made == 2
    assert_whole(tiny_predictor, files, folder)


def subprocess_hold(folder):
    """What another process hears that wants the same share."""
    code = "import sys; from pathlib import Path; from remap.store.lock import hold\n"
    code += "with hold(Path(sys.argv[1])): pass"
    environment = os.environ | {"PYTHONPATH": str(tiny.REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", code, folder], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise LockedError(done.stderr)


def test_other_inputs_networks_and_settings_are_refused_with_both_values(
    tiny_predictor, tiny_workdir, files, tmp_path
):
    folder = tmp_path / "parts"
    predict_stream(tiny_predictor, files, folder, stream=HERE)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    one = load(tiny_workdir, folds=[0])
    with pytest.raises(
        ConfigError,
        match=r"shards of other networks than this run's.*weights\.A\.1: expected 'nothing'",
    ):
        predict_stream(one, files, folder, stream=HERE)
    with pytest.raises(
        ConfigError, match=r"shards of other settings than this run's.*shard: expected 4, found 8"
    ):
        predict_stream(tiny_predictor, files, folder, stream=StreamSettings(shard=4, workers=0))
    with pytest.raises(ConfigError, match="velocities: expected"):
        predict_stream(tiny_predictor, files, folder, stream=HERE, velocities=np.zeros(len(files)))
    with pytest.raises(ConfigError, match="made of other inputs: expected 14 files, found 13"):
        predict_stream(tiny_predictor, files[:-1], folder, stream=HERE)
    with pytest.raises(ConfigError, match=r"expected .*dwarf_00\.fits, found .*dwarf_01\.fits"):
        predict_stream(tiny_predictor, files[1:], folder, stream=HERE)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    os.utime(files[2], ns=(0, 0))
    with pytest.raises(ConfigError, match=r"dwarf_02\.fits has changed since"):
        predict_stream(tiny_predictor, files, folder, stream=HERE)
    (folder / "manifest.json").unlink()
    with pytest.raises(ConfigError, match=r"has parts of a catalogue but no manifest\.json"):
        predict_stream(tiny_predictor, files, folder, stream=HERE)


def test_a_damaged_part_is_made_again_and_one_of_another_run_refused(tiny_predictor, files, tmp_path):
    folder, other = tmp_path / "parts", tmp_path / "others"
    predict_stream(tiny_predictor, files, folder, stream=HERE)
    part = folder / "part-00001.fits"
    whole, rng = part.read_bytes(), np.random.default_rng(0)
    turned = [bytearray(whole) for _ in range(6)]
    for copy in turned:
        bit = int(rng.integers(8 * len(whole)))
        copy[bit // 8] ^= 1 << bit % 8
    for damaged in (whole[:-2880], *turned):
        part.write_bytes(damaged)
        with pytest.raises(ConfigError, match=r"1 parts are missing: part-00001\.fits"):
            merge(folder, tmp_path / "merged.fits")
    done = predict_stream(tiny_predictor, files, folder, stream=HERE)
    assert (done.made, done.kept) == (1, 1)
    assert_whole(tiny_predictor, files, folder)
    predict_stream(tiny_predictor, files[:9], other, stream=HERE)
    (other / "part-00001.fits").replace(part)
    with pytest.raises(ConfigError, match=r"part-00001\.fits: is a part of another run"):
        predict_stream(tiny_predictor, files, folder, stream=HERE)


@pytest.mark.parametrize("text", ["[]", "{}", '{"format": 1', '{"inputs": 3}', "null"])
def test_a_damaged_manifest_is_named(tiny_predictor, files, tmp_path, text):
    folder = tmp_path / "parts"
    folder.mkdir()
    (folder / "manifest.json").write_text(text)
    for call in (
        lambda: predict_stream(tiny_predictor, files, folder, stream=HERE),
        lambda: merge(folder, tmp_path / "merged.fits"),
    ):
        with pytest.raises(ConfigError, match=r"parts/manifest\.json: cannot be used"):
            call()


def test_a_list_of_inputs_that_is_gone_and_a_damaged_list_of_stars_are_told(tiny_predictor, files, tmp_path):
    folder = tmp_path / "parts"
    source = {**tiny_predictor.config["survey"]["source"], "facts": {"star_id": {"name": r"_(\d*)\.fits"}}}
    how = dict(source=source, settings=_joining(tiny_predictor), stream=HERE)
    predict_stream(tiny_predictor, files, folder, **how)
    kept = json.loads((folder / "stars.json").read_text())
    (folder / "inputs.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"other inputs, of which inputs\.jsonl is gone"):
        predict_stream(tiny_predictor, files[1:], folder, **how)
    for damaged in ([], {"inputs": kept["inputs"]}, {**kept, "groups": 3}):
        (folder / "stars.json").write_text(json.dumps(damaged))
        with pytest.raises(ConfigError, match=r"stars\.json: cannot be used"):
            predict_stream(tiny_predictor, files, folder, **how)


def test_identifiers_of_another_declaration_are_looked_for_again(
    tiny_predictor, files, tmp_path, monkeypatch
):
    """A run that is stopped before its manifest is there has left those of its own declaration."""
    monkeypatch.setattr("remap.predict.stream.open_folder", _full)
    folder, own = tmp_path / "parts", tiny_predictor.config["survey"]["source"]
    first = [i for i in range(14) if i not in (6, 11, 12)]
    for name, groups in ((r"(dwarf_0)\d", [first]), (r"(dwarf_1)\d", [[11, 12]])):
        source = {**own, "facts": {"star_id": {"name": name}}}
        how = dict(source=source, settings=_joining(tiny_predictor), stream=StreamSettings(workers=0))
        with pytest.raises(StorageError, match="full"):
            predict_stream(tiny_predictor, files, folder, **how)
        assert json.loads((folder / "stars.json").read_text())["groups"] == groups


def _full(*_):
    raise StorageError("full")


def test_a_copy_of_another_part_is_made_again(tiny_predictor, files, tmp_path):
    folder = tmp_path / "parts"
    predict_stream(tiny_predictor, files, folder, stream=HERE)
    shutil.copy(folder / "part-00000.fits", folder / "part-00001.fits")
    with pytest.raises(ConfigError, match=r"1 parts are missing: part-00001\.fits"):
        merge(folder, tmp_path / "merged.fits")
    done = predict_stream(tiny_predictor, files, folder, stream=HERE)
    assert (done.made, done.kept) == (1, 1)
    assert_whole(tiny_predictor, files, folder)


def test_shards_of_other_references_templates_masks_or_versions_are_not_gone_on_with(
    tiny_predictor, files, tmp_path, monkeypatch
):
    """Each of them decides what is in a row: neighbours and FAR, velocities, valid pixels, everything."""
    folder, one = tmp_path / "parts", tiny_predictor
    predict_stream(one, files, folder, stream=HERE)
    (folder / "part-00001.fits").unlink()
    templates = dataclasses.replace(one.templates, labels=one.templates.labels + 1)
    mask = StationaryMask(((5010.0, 5011.0),), one.preprocessing.medium)
    known = ReferenceSet(
        names=np.array(["s"]), labels=np.zeros((1, 1), np.float32), label_names=("teff",), star_ids=np.array(["s"]),
        embedding={}, seen={}, sheets=Sheets(np.zeros((1, 2), np.float32), np.ones((1, 2), bool)), familiar=None,
        count=1, digest="abc",
    )  # fmt: skip
    for other, how, told in (
        (dataclasses.replace(one, known=known), {}, r"references: expected 'abc', found 'none'"),
        (dataclasses.replace(one, templates=templates), {}, r"other networks.* templates: expected"),
        (one, {"stationary": mask}, r"other settings.* stationary: expected '[0-9a-f]{64}', found 'none'"),
    ):
        with pytest.raises(ConfigError, match=told):
            predict_stream(other, files, folder, stream=HERE, **how)
    with monkeypatch.context() as patch:
        patch.setattr("remap.predict.stream.SOFTWARE", {"deep-remap": "99"})
        with pytest.raises(ConfigError, match=r"expected shards of this version, .*'99'"):
            predict_stream(one, files, folder, stream=HERE)
    predict_stream(one, files, folder, stream=HERE)
    with monkeypatch.context() as patch:  # where nothing is left to make, all are of one version
        patch.setattr("remap.predict.stream.SOFTWARE", {"deep-remap": "99"})
        assert predict_stream(one, files, folder, stream=HERE).kept == 2


def test_stars_in_several_files_are_rows_in_the_order_of_a_prediction_at_once(tiny_predictor, tmp_path):
    """Stars 1, 2 and 4 were seen in two nights, and one star has its arms in two files."""
    wave, flux, ivar = tiny.star(7)
    for night, stars in (("a", (1, 2, 3, 4)), ("b", (4, 5, 1, 2)), ("c", (6,))):
        for i in stars:
            exposure = tiny.star(i, seed=100 * "abc".index(night) + i)
            tiny.write_table(tmp_path / "spectra" / f"{night}_s{i}.fits", *exposure)
    for arm, keep in (("a", wave < 5122), ("c", wave > 5118)):
        tiny.write_table(tmp_path / "spectra" / f"{arm}_s7.fits", wave[keep], flux[keep], ivar[keep])
    (tmp_path / "spectra" / "a_s3b.fits").write_text("no FITS")
    files = io.list_files(tmp_path / "spectra", "*.fits")
    source = {**tiny_predictor.config["survey"]["source"], "facts": {"star_id": {"name": r"_(s\d)\.fits"}}}
    settings = dict(source=source, settings=_joining(tiny_predictor))
    done = predict_stream(
        tiny_predictor, files, tmp_path / "parts", stream=StreamSettings(shard=3, workers=0), **settings
    )
    assert done.shards > 2
    assert assert_whole(tiny_predictor, files, tmp_path / "parts", **settings) == 8
    found = read_catalogue(tmp_path / "merged.fits").table
    assert list(found["star_id"]) == ["s1", "s2", "s3", "", "s4", "s7", "s5", "s6"]
    assert list(found["exposures"]) == [2, 2, 1, 1, 2, 2, 1, 1]


def test_stars_by_position_are_joined_as_at_once(tiny_predictor, tmp_path):
    """Of visits whose identifiers change: one star, a pair 2 arcsec apart, and three in a row that say nothing."""
    places = {
        "a0": 0.0,
        "b0": 1.2,
        "a1": 100.0,
        "b1": 102.0,
        "a2": 200.0,
        "b2": 201.0,
        "c2": 202.0,
        "c0": 0.6,
        "d1": 100.2,
    }
    files = []
    for i, (name, away) in enumerate(places.items()):
        visit = tiny.star(int(name[1]), seed=100 + i)  # none is a copy of another
        files.append(tiny.write_table(tmp_path / "spectra" / f"{i}_{name}.fits", *visit))
        for key, value in (("RA", 120.0), ("DEC", 10 + away / 3600), ("DESIG", f"J{away}")):
            fits.setval(files[-1], key, value=value, ext=1)
    facts = {"star_id": {"keyword": "DESIG", "within": 1.5}, "ra": "RA", "dec": "DEC"}
    source = {**tiny_predictor.config["survey"]["source"], "facts": facts}
    settings = dict(source=source, settings=_joining(tiny_predictor))
    stream = StreamSettings(shard=1, workers=0)
    done = predict_stream(tiny_predictor, files, tmp_path / "parts", stream=stream, **settings)
    assert done.shards == 4  # those of the third place must be looked at together
    assert assert_whole(tiny_predictor, files, tmp_path / "parts", **settings) == 6
    found = read_catalogue(tmp_path / "merged.fits").table
    assert list(found["exposures"]) == [3, 2, 1, 1, 1, 1]
    assert list(found["star_id"]) == ["J0.0", "J100.0", "J102.0", "J200.0", "J201.0", "J202.0"]


def _joining(predictor):
    return dataclasses.replace(predictor.observe_settings, join=True)


def test_long_bundles_are_read_in_parts(tiny_predictor, tmp_path, monkeypatch):
    monkeypatch.setattr("remap.predict.plan.SPLIT", 4)
    spectra = dataclasses.replace(tiny.spectra(tuple(range(10))), labels={"teff": np.zeros(10)})
    io.write_bundle(tmp_path / "all.npz", spectra)
    io.write_bundle(tmp_path / "few.npz", spectra.rows(slice(2)))
    (tmp_path / "bad.npz").write_text("no zip")
    files = [tmp_path / name for name in ("all.npz", "bad.npz", "few.npz")]
    source = {"format": "bundle", "medium": "air", "absolute": False, "label_columns": ("teff",)}
    done = predict_stream(tiny_predictor, files, tmp_path / "parts", stream=HERE, source=source)
    assert done.shards == 2
    assert assert_whole(tiny_predictor, files, tmp_path / "parts", source=source) == 13


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_are_read_in_pieces_and_a_damaged_file_is_named(tiny_predictor, tmp_path, monkeypatch, kind):
    monkeypatch.setattr("remap.predict.plan.SPLIT", 4)
    spectra = tiny.spectra(tuple(range(10)))
    arrays = {"wave": spectra.wave, "flux": spectra.flux, "ivar": spectra.ivar, "ids": np.arange(10)}
    files = [write_arrays(tmp_path / f"{name}.arrays", kind, arrays) for name in ("all", "bad")]
    files[1].write_bytes(files[1].read_bytes()[:-300])
    source = {"format": "arrays", "medium": "air"}
    for _ in range(2):  # the second run finds all there, and tells the same
        done = predict_stream(tiny_predictor, files, tmp_path / "parts", stream=HERE, source=source)
        assert done.shards == 2
        assert done.unread == (str(files[1]),)
    assert assert_whole(tiny_predictor, files, tmp_path / "parts", source=source) == 11
    found = read_catalogue(tmp_path / "merged.fits").table
    assert found["file"].tolist() == [*(f"all.arrays[{i}]" for i in range(10)), "bad.arrays"]
    assert found["flags"][-1] == Flag.UNREADABLE
    assert "bad.arrays" in found["message"][-1]


@pytest.mark.parametrize("join", [True, False])
def test_targets_are_read_in_pieces_with_all_rows_of_a_star(tiny_predictor, tmp_path, monkeypatch, join):
    """Stars 0 to 5 were seen in one exposure, then three of them in another; rows of a star lie apart."""
    monkeypatch.setattr("remap.predict.plan.SPLIT", 3)
    rows, stars = [*range(6), 6, 7, 8], [0, 1, 2, 3, 4, 5, 1, 3, 5]
    spectra = tiny.spectra(tuple(rows))
    table = Table({"TARGETID": np.array(stars) + 100, "EXPID": [1] * 6 + [2] * 3})
    hdus = [fits.PrimaryHDU(), fits.BinTableHDU(table, name="FIBERMAP")]
    images = {"WAVELENGTH": spectra.wave, "FLUX": spectra.flux, "IVAR": spectra.ivar}
    hdus += [fits.ImageHDU(data, name=f"B_{name}") for name, data in images.items()]
    fits.HDUList(hdus).writeto(tmp_path / "coadd.fits")
    source = {
        **surveys.get("desi").source,
        "medium": "air", "mask_hdu": None, "mask_good": None, "resolution_hdu": None,
        "facts": {"star_id": {"column": "TARGETID"}, "exposure": {"column": "EXPID"}},
    }  # fmt: skip
    how = {"source": source, "settings": dataclasses.replace(tiny_predictor.observe_settings, join=join)}
    stream = StreamSettings(shard=4, workers=0)
    files = [tmp_path / "coadd.fits"]
    done = predict_stream(tiny_predictor, files, tmp_path / "parts", stream=stream, **how)
    assert done.shards > 1
    assert assert_whole(tiny_predictor, files, tmp_path / "parts", **how) == (6 if join else 9)
    if join:
        assert read_catalogue(tmp_path / "merged.fits").table["exposures"].tolist() == [1, 2, 1, 2, 1, 2]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"shard": 0}, "found 0, 1 and 120"),
        ({"workers": -1}, "found 2048, -1 and 120"),
        ({"timeout": 0.0}, "found 2048, 1 and 0"),
        ({"shard_format": "ecsv"}, r"shard_format must be one of \('fits', 'parquet'\), found 'ecsv'"),
        ({"process_index": 2, "process_count": 2}, "process_index: expected 0 to 1, found 2"),
    ],
)
def test_settings_out_of_range_are_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        StreamSettings(**wrong)


def test_a_disk_without_room_is_told_before_anything_is_predicted_or_merged(
    tiny_predictor, files, tmp_path, monkeypatch
):
    """The catalogue needs more than the disk has, though some of it would fit."""
    usage, folder = shutil.disk_usage(tmp_path), tmp_path / "parts"
    assert tiny_predictor.row_bytes == 4 * 3 * sum(b.bins for b in tiny_predictor.preprocessing.labels)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda _: usage._replace(free=10 * tiny_predictor.row_bytes))
        with pytest.raises(StorageError, match=rf"{folder}: needs about .* MB free"):
            predict_stream(tiny_predictor, files, folder, stream=HERE)
    assert not list(folder.glob("part-*"))
    predict_stream(tiny_predictor, files, folder, stream=HERE)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda _: usage._replace(free=10 * tiny_predictor.row_bytes))
        with pytest.raises(StorageError, match="needs about"):
            merge(folder, tmp_path / "merged.fits")
    assert not list(tmp_path.glob("merged*"))
