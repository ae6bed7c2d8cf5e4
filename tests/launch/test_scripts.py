"""The launch scripts as a user runs them: a catalogue from a moved folder, and errors in one line."""

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from astropy.io import fits
from helpers import tiny

from remap.command import flags as cli
from remap.command.streaming import StreamFlags
from remap.config import ConfigError
from remap.io import list_files
from remap.io.bundle import read_bundle
from remap.predict.catalogue import Flag, read_catalogue
from remap.spectra import air_to_vacuum, doppler_shift, vacuum_to_air
from remap.train.loop import Preempted


def test_predict_makes_a_catalogue_from_a_moved_folder_alone(tiny_workdir, tiny_predictor, tmp_path):
    """Two folders with a name in common, a file by itself, one broken; the survey and library are not there."""
    workdir = tmp_path / "moved"
    shutil.copytree(tiny_workdir, workdir, ignore=shutil.ignore_patterns("*.npz", "pretrain"))
    first, second, alone = tmp_path / "night 1", tmp_path / "night 2", tmp_path / "alone.fit"
    for folder, stars in ((first, (3, 1)), (second, (1, 5))):
        for i in stars:
            tiny.write_table(folder / tiny.DWARFS[i][0], *tiny.star(i))
    tiny.write_table(alone, *tiny.star(8))
    (second / "broken.fits").write_text("no FITS")
    output = tmp_path / "out" / "catalogue.fits"
    done = tiny.launch(
        "launch.predict",
        f"--workdir={workdir}",
        f"--spectra={second},{first},{alone}",
        f"--output={output}",
        "--report",
    )
    assert done.returncode == 0, done.stderr
    assert "6 rows from 6 files, 1 of them could not be used" in done.stderr

    found = read_catalogue(output)
    order = [
        f"night 2/{name}.fits" for name in ("broken", "dwarf_01", "dwarf_05")
    ]  # one name is in both folders
    order += ["night 1/dwarf_01.fits", "night 1/dwarf_03.fits", f"{tmp_path.name}/alone.fit"]
    assert list(found.table["file"]) == order
    assert found.table["flags"][0] == Flag.UNREADABLE
    assert str(second / "broken.fits") in found.table["message"][0]
    assert found.meta["checkpoint_step"] == {"A": [4, 4], "B": [4, 4]}
    expected = tiny_predictor.predict(tiny.spectra((1, 5, 1, 3, 8)))
    for key, pmf in expected.pmfs.items():
        np.testing.assert_allclose(found.pmfs[key][1:], pmf, atol=1e-6)
        assert np.isnan(found.pmfs[key][0]).all()
    np.testing.assert_array_equal(found.table["flags"][1:], expected.table["flags"])

    with fits.open(output) as hdus:  # what the documents promise to any reader of FITS
        catalogue, pmfs = hdus[1], hdus["PMF_feh"]
        wanted = [label + end for label in ("teff", "logg", "feh") for end in ("", "_p16", "_p84")]
        assert {"file", "flags", *wanted} <= set(catalogue.columns.names)
        assert catalogue.columns["teff"].unit == "K"
        assert np.all(catalogue.data["teff_p16"][1:] < catalogue.data["teff_p84"][1:])
        bins = [pmfs.header[key] for key in ("CRVAL1", "CDELT1", "NAXIS1")]
        assert bins == [-2.0, 3.0 / 60, 60]
        np.testing.assert_allclose(hdus["EDGES_feh"].data, np.linspace(-2.0, 1.0, 61))
        np.testing.assert_allclose(pmfs.data[1:].sum(axis=1), 1, atol=1e-5)

    page = output.with_suffix(".html").read_text()
    assert all(name in page for name in order)
    assert page.count("flux, normalised flux and saliency") == 10  # two arms of five stars

    again = tiny.launch("launch.predict", f"--workdir={workdir}", f"--spectra={alone}", f"--output={output}")
    assert again.returncode == 1
    assert f"error: {output}: exists already" in again.stderr
    assert len(read_catalogue(output).table) == 6


def test_predict_in_a_stream_from_worker_processes_with_a_shard_set_aside(
    tiny_workdir, tiny_predictor, tmp_path
):
    """Two processes, of which one fails at a shard; a third makes it and merges."""
    for i in range(9):
        tiny.write_table(tmp_path / "night" / tiny.DWARFS[i][0], *tiny.star(i))
    (tmp_path / "night" / "dwarf_01b.fits").write_text("no FITS")
    parts = tmp_path / "parts"
    command = [
        f"--workdir={tiny_workdir}",
        f"--spectra={tmp_path / 'night'}",
        f"--output={parts}",
        "--shard=4",
    ]
    fails = (
        "from remap.predict.predictor import Predictor\nown = Predictor.predict_arms\n"
        "def fails(self, observed):\n    if 'dwarf_08.fits' in observed.names: raise ArithmeticError('no')\n"
        "    return own(self, observed)\nPredictor.predict_arms = fails"
    )
    share = ("--share_count=2", "--workers=1")
    first = tiny.launch("launch.predict", *command, *share, "--share_index=0", before=fails)
    assert first.returncode == 2, first.stderr
    assert "part-00002.fits failed, once more: ArithmeticError: no" in first.stderr
    assert "1 shards made, 0 there before; 4 rows, 1 of them could not be used" in first.stderr
    assert "set aside, each with the reason beside it: part-00002.fits" in first.stderr
    assert sorted(path.name for path in parts.glob("part*")) == ["part-00000.fits", "part-00002.failed"]

    merged = tmp_path / "merged.fits"
    second = tiny.launch("launch.predict", *command, "--workers=0", f"--merge={merged}", "--quiet")
    assert second.returncode == 0, second.stderr
    assert second.stderr == ""
    once = tmp_path / "once.fits"
    files = list_files(tmp_path / "night", "*.fits")
    tiny_predictor.predict_files(files, date=read_catalogue(merged).meta["date"]).write(once)
    assert merged.read_bytes() == once.read_bytes()


def streaming(tmp_path, stars, *arguments):
    """The flags of a stream, and the files of some stars."""
    for i in range(stars):
        tiny.write_table(tmp_path / "night" / tiny.DWARFS[i][0], *tiny.star(i))
    values = flags.FlagValues()
    stream = StreamFlags(values)
    values(["test", "--stream", "--workers=0", "--shard=2", *arguments])
    return stream, list_files(tmp_path / "night", "*.fits")


def test_shards_are_gone_once_the_catalogue_is_there(tiny_predictor, tmp_path):
    stream, files = streaming(tmp_path, 3)
    output = tmp_path / "one.fits"
    assert stream.wanted(tiny_predictor, files, {}, str(output), whole="")
    stream.run(tiny_predictor, files, {}, str(output), overwrite=False)
    assert list(read_catalogue(output).table["file"]) == [file.name for file in files]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["night", "one.fits"]
    with pytest.raises(FileExistsError, match=r"one\.fits"):
        stream.run(tiny_predictor, files, {}, str(output), overwrite=False)


PREDICTS = "remap.predict.predictor.Predictor.predict_arms"


@pytest.mark.parametrize(
    ("number", "where"),
    [
        (signal.SIGTERM, "astropy.io.fits.open"),
        (signal.SIGTERM, PREDICTS),
        (signal.SIGINT, PREDICTS),
        (signal.SIGTERM, "remap.command.streaming.merge"),
    ],
)
def test_a_signal_stops_a_stream_and_is_no_fault_of_a_file_or_a_shard(
    tiny_predictor, tmp_path, monkeypatch, number, where
):
    """Wherever it arrives: neither is a file flagged for it, nor a shard tried again."""
    stream, files = streaming(tmp_path, 3)
    output, before, calls = tmp_path / "one.fits", signal.getsignal(signal.SIGTERM), []
    with monkeypatch.context() as patch:

        def kill(*args, **kwargs):
            calls.append(args)
            os.kill(os.getpid(), number)

        patch.setattr(where, kill)
        with pytest.raises(Preempted, match="the same command makes the shards that are missing"):
            stream.run(tiny_predictor, files, {}, str(output), overwrite=False)
    assert len(calls) == 1
    assert signal.getsignal(signal.SIGTERM) == before
    there = sorted(path.name for path in tmp_path.glob("one.fits.parts/part*"))
    assert there == (["part-00000.fits", "part-00001.fits"] if "merge" in where else [])
    stream.run(tiny_predictor, files, {}, str(output), overwrite=False)
    found = read_catalogue(output)
    assert not np.any(found.table["flags"] & Flag.UNREADABLE)
    once = tmp_path / "once.fits"
    tiny_predictor.predict_files(files, date=found.meta["date"]).write(once)
    assert output.read_bytes() == once.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--output=x.fits", "--share_count=2"), "several processes share a folder"),
        (("--output=parts", "--nostream"), "a folder as --output"),
        (
            ("--output=parts", "--report"),
            "--report: a stream does not keep what that needs; run launch.report",
        ),
        (("--output=parts", "--embeddings"), "--embeddings: a stream does not keep what that needs"),
        (("--output=parts", "--share_count=2", "--merge=x.fits"), "a run of its own"),
    ],
)
def test_flags_of_a_stream_that_contradict_each_other_are_told(
    tiny_predictor, arguments, message, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    values = flags.FlagValues()
    stream = StreamFlags(values)
    given = {name: value for name, _, value in (text[2:].partition("=") for text in arguments)}
    whole = ("--report", "--embeddings")
    values(["test", *(text for text in arguments if not text.startswith(("--output", *whole)))])

    def predict(output, *, whole):
        if stream.wanted(tiny_predictor, [], {}, output, whole=whole):
            stream.run(tiny_predictor, [], {}, output, overwrite=False)

    with pytest.raises(ConfigError, match=message):
        predict(given["output"], whole=next((flag for flag in whole if flag[2:] in given), ""))


def test_arrays_are_declared_on_the_command_line_and_what_cannot_be_read_is_status_2(
    tiny_predictor, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr("signal.signal", lambda *_: None)
    spectra = tiny.spectra((0, 1))
    folder = tmp_path / "arrays"
    folder.mkdir()
    np.savez(folder / "a.npz", wave=spectra.wave, flux=spectra.flux, ivar=spectra.ivar)
    (folder / "b.npz").write_bytes((folder / "a.npz").read_bytes()[:-100])
    values = flags.FlagValues()
    given, stream = cli.define_spectra(values=values), StreamFlags(values)
    source = '{"format": "arrays", "medium": "air"}'
    values(["test", f"--spectra={folder}", f"--source={source}", "--stream", "--workers=0"])
    files, how = given.files(tiny_predictor)
    assert [path.name for path in files] == ["a.npz", "b.npz"]
    output = tmp_path / "catalogue.fits"
    with pytest.raises(SystemExit) as stop:
        stream.run(tiny_predictor, files, how, str(output), overwrite=False)
    assert stop.value.code == 2
    assert str(folder / "b.npz") in caplog.records[-1].message
    assert list(read_catalogue(output).table["file"]) == ["a.npz[0]", "a.npz[1]", "b.npz"]


def test_many_spectra_are_a_stream_by_default(tiny_predictor):
    values = flags.FlagValues()
    stream = StreamFlags(values)
    values(["test"])
    many = [Path(f"{i}.fits") for i in range(5001)]
    assert stream.wanted(tiny_predictor, many, {}, "x.fits", whole="")
    assert not stream.wanted(tiny_predictor, many, {}, "x.fits", whole="--report")
    assert not stream.wanted(tiny_predictor, many, {}, "x.fits", whole="--embeddings")
    assert not stream.wanted(tiny_predictor, many[:-1], {}, "x.fits", whole="")


def test_predict_takes_velocities_from_a_table_and_a_resolution(tiny_workdir, tiny_predictor, tmp_path):
    """Files without a row of the table have no velocity; sharper spectra are degraded."""
    folder = tmp_path / "night"
    speeds = {"a.fits": 120.0, "b.fits": -80.0}
    for (name, speed), i in zip([*speeds.items(), ("c.fits", 0.0)], (3, 1, 5), strict=True):
        wave, flux, ivar = tiny.star(i)
        tiny.write_table(folder / name, vacuum_to_air(doppler_shift(air_to_vacuum(wave), speed)), flux, ivar)
    table = tmp_path / "velocities.csv"
    table.write_text("file,v_helio\n" + "".join(f"{name},{speed}\n" for name, speed in speeds.items()))
    done = tiny.launch(
        "launch.predict",
        f"--workdir={tiny_workdir}",
        f"--spectra={folder}",
        f"--output={tmp_path / 'catalogue.vot'}",
        "--embeddings",
        f"--velocities={table}",
        "--velocity_column=v_helio",
        "--resolution=700",  # coarser than the networks know it
    )
    assert done.returncode == 0, done.stderr
    found = read_catalogue(tmp_path / "catalogue.vot")
    assert [np.isfinite(x).all(axis=1).tolist() for x in found.embeddings.values()] == 2 * [
        [True, True, False]
    ]
    np.testing.assert_allclose(found.table["rv"], [120.0, -80.0, np.nan])
    assert "expected a radial velocity" in found.table["message"][2]
    assert np.all(found.table["flags"][:2] & Flag.RESOLUTION)
    expected = tiny_predictor.predict(tiny.spectra((3, 1)))
    for key, pmf in expected.pmfs.items():
        np.testing.assert_allclose(found.pmfs[key][:2], pmf, atol=1e-3)


def test_report_of_a_catalogue_with_and_without_its_networks(
    tiny_data, tiny_workdir, tiny_predictor, tmp_path
):
    pytest.importorskip("jinja2", reason="needs Jinja2 (extra `report`)")
    files = tiny_data / "survey" / "spectra"
    names = ("dwarf_03.fits", "giant_0.fits")
    catalogue = tmp_path / "catalogue.fits"
    tiny_predictor.predict_files([files / name for name in names]).write(catalogue)
    labels = tmp_path / "labels.csv"
    labels.write_text("file,teff\ndwarf_03.fits,5000\n")
    for more, arms in ((), 0), ((f"--workdir={tiny_workdir}",), 4):
        page = tmp_path / f"report_{arms}.html"
        done = tiny.launch(
            "launch.report", f"--catalogue={catalogue}", f"--output={page}", f"--labels={labels}",
            '--label_columns={"teff": "teff"}', *more,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        text = page.read_text()
        assert all(name in text for name in names)
        assert text.count("flux, normalised flux and saliency") == arms  # the survey's own spectra
        assert "Labels of labels.csv" in text


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        (
            "predict",
            ["--workdir={work}", "--spectra={tmp}", "--output={tmp}/c.fits"],
            "expected files like *.fits",
        ),
        (
            "predict",
            ["--workdir={work}", "--spectra={tmp}", "--output={tmp}/c.fits", "--survey=lamost"],
            "survey must be one of apogee, calspec",
        ),
        ("inspect", ["{tmp}/gone.fits"], "gone.fits"),
        ("report", ["--catalogue={tmp}/gone.fits", "--output={tmp}/r.html"], "gone.fits"),
        ("report", ["--catalogue={tmp}/gone.fits", "--output={tmp}/r.pdf"], "must end in .html"),
        (
            "pretrain",
            ["--config=tests/helpers/tiny.py", "--workdir={tmp}"],
            "expected the preprocess stage's output",
        ),
        (
            "ablate",
            ["--config=tests/helpers/tiny.py", "--config.ablate.run=('no_star',)", "--workdir={tmp}"],
            "ablate.run: unknown variants ['no_star']; the config has ['average_pooling'",
        ),
        (
            "preprocess",
            ["--config=tests/helpers/tiny.py", "--config.data_root={tmp}", "--workdir={tmp}/w"],
            "library.npz: not found; expected it at",
        ),
    ],
)
def test_mistakes_are_told_in_one_line(tiny_workdir, tmp_path, script, arguments, message):
    arguments = [a.format(tmp=tmp_path, work=tiny_workdir) for a in arguments]
    done = tiny.launch(f"launch.{script}", *arguments)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last


def test_unknown_field_is_told_without_a_traceback(tmp_path):
    done = tiny.launch(
        "launch.preprocess",
        "--config=tests/helpers/tiny.py",
        "--config.pretrain.batchsize=3",
        f"--workdir={tmp_path}",
    )
    assert done.returncode != 0
    assert "batchsize" in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_synthesize_makes_a_library_that_reads_as_any_other(tmp_path):
    output = tmp_path / "library.npz"
    arguments = [
        "--config=configs/synthesize.py:short",
        "--config.library.teff=(5750.0,)",
        "--config.library.logg=(4.5,)",
        "--config.library.alpha=(0.0,0.4)",
        "--config.library.wave_range=(5160.0,5180.0)",
        f"--output={output}",
    ]
    done = tiny.launch("launch.synthesize", *arguments)
    assert done.returncode == 0, done.stderr
    assert "4 spectra of 201 pixels" in done.stderr
    source = {
        "format": "bundle",
        "medium": "air",
        "absolute": True,
        "label_columns": ("teff", "logg", "m_h", "vmic", "alpha"),
    }
    spectra = read_bundle(output, source)
    assert spectra.flux.shape == (4, 201)
    np.testing.assert_allclose(spectra.labels["feh"], [-0.5, -0.5, 0.0, 0.0])
    np.testing.assert_allclose(spectra.labels["alpha"], [0.0, 0.4, 0.0, 0.4])
    written = output.read_bytes()

    again = tiny.launch("launch.synthesize", *arguments)
    assert again.returncode == 1
    assert again.stderr.strip() == f"error: {output}: exists already; a library is never overwritten"
    assert output.read_bytes() == written

    hot = tiny.launch(
        "launch.synthesize", "--config.library.teff=(9000.0,)", f"--output={tmp_path / 'hot.npz'}"
    )
    assert hot.returncode == 1
    assert hot.stderr.strip() == "error: teff = 9000 is outside the model's range [3900, 7500]"
    assert [p.name for p in tmp_path.iterdir()] == ["library.npz"]
