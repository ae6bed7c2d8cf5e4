"""Readers on the shared files of other surveys: how fast they are, and what they make of a thousand damaged copies.

    python -m benchmarks.bench_readers --data=$REMAP_DATA [--kinds=harps,uves] [--mutants=1000] [--out=readers.json]
    python -m benchmarks.bench_readers --data=$REMAP_DATA --mutants=0 --hostile=5000  # of these files
    python -m benchmarks.bench_readers --small --hostile=5000 [--kinds=image,bundle]

For every kind: files per second on one core, and of its mutants how many were refused, how many read without a
difference, how many with a difference in touched pixels alone, and how many beyond (`changed`): a number in a header
that nothing else in the file repeats, such as the first wavelength, cannot be seen to be wrong. Anything but
`SpectrumError`, more than `SECONDS` for a file or more than `BYTES` of memory ends the run. With `--hostile`
the first file of every kind has as many hostile copies as well, see `benchmarks.fuzzing`.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import io as streams
import json
import logging
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from absl import app, flags
from astropy.io import fits

from benchmarks import fuzzing
from benchmarks.small_files import SAMPLES, Sample
from remap import io, surveys
from remap.spectra import Spectra, SpectrumError

logger = logging.getLogger(__name__)

SECONDS, BYTES = 10.0, 2**31  # for one file, of processor time
# Shared files of each kind: preset, folder and pattern.
KINDS = {
    "lamost_lrs": ("lamost_lrs", "surveys/lamost_lrs/spectra", "*.fits"),
    "lamost_repeats": ("lamost_lrs", "surveys/lamost_repeats/spectra", "*.fits.gz"),
    "lamost_mrs": ("lamost_mrs", "surveys/lamost_mrs", "*.fits"),
    "sdss_spec": ("sdss", "surveys/sdss_spec", "*.fits"),
    "boss_spec": ("sdss", "surveys/boss_spec", "*.fits"),
    "sdss_spSpec": ("sdss_spspec", "surveys/sdss_spSpec", "*.fits"),
    "apogee_apStar": ("apogee", "surveys/apogee_apStar", "*.fits"),
    "apogee_apVisit": ("apogee", "surveys/apogee_apVisit", "*.fits"),
    "desi": ("desi", "surveys/desi", "*.fits"),
    "hires": ("hires", "surveys/hires", "*.fits"),
    "calspec": ("calspec", "surveys/calspec", "alpha_lyr*.fits"),
    "ferre": ("ferre", "surveys/ferre", "*.fits"),
    "harps": ("harps", "surveys/harps", "*.fits"),
    "uves": ("uves", "surveys/uves", "*.fits"),
    "elodie": ("elodie", "surveys/elodie", "*.fits"),
    "elodie_text": ("text", "surveys/elodie", "*.dat"),
    "mike": ("mike", "surveys/mike", "*.fits"),
    "sun_image": ("linear_image", "surveys/sun_image", "*.fits"),
    "sun_text": ("text", "surveys/sun_text", "*.txt"),
    "iraf_TRES": ("iraf_multispec", "surveys/iraf", "TRES.fits"),
    "iraf_equispec": ("iraf_multispec", "surveys/iraf", "multispec*.fits"),
    "miles": ("miles", "miles/spectra", "*.fits"),
    "phoenix_medres": ("phoenix", "phoenix/medres", "*.fits"),
}


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A damaged copy: its content, what was done, and the bytes [start, stop) of the original that it touches."""

    content: bytes
    what: str
    start: int
    stop: int
    in_data: bool


def data_regions(content: bytes) -> list[tuple[int, int]]:
    """Where the data of a file lie: of a FITS file those of its HDUs, of any other all of it."""
    if not content.startswith(b"SIMPLE"):
        return [(0, len(content))]
    with fits.open(streams.BytesIO(content)) as hdus:
        places = [hdus.fileinfo(i) for i in range(len(hdus))]
        sizes = [hdu.size for hdu in hdus]
    return [(p["datLoc"], p["datLoc"] + n) for p, n in zip(places, sizes, strict=True)]


def mutants(content: bytes, count: int, seed: int) -> Iterator[Mutant]:
    """Damaged copies of a file: flipped bits, truncations, changed cards, blocks of NaN, of zeros and of noise."""
    rng = np.random.default_rng(seed)
    regions = data_regions(content)
    is_fits = content.startswith(b"SIMPLE")
    heads = (
        [(a, b) for (_, a), (b, _) in zip([(0, 0), *regions], regions, strict=False) if b > a]
        if is_fits
        else []
    )
    kinds = ("flip data", "flip head", "card", "cut", "nan", "zeros", "noise", "longer")
    for number in range(count):
        what = kinds[number % len(kinds)] if is_fits else ("flip data", "cut", "noise", "zeros")[number % 4]
        start, stop = 0, len(content)
        if what in ("flip head", "card"):
            start, stop = heads[rng.integers(len(heads))]
        elif what not in ("cut", "longer"):
            full = [r for r in regions if r[1] > r[0]]
            start, stop = full[rng.integers(len(full))]
        at = int(rng.integers(start, stop))
        if what.startswith("flip"):
            new, end = bytes([content[at] ^ 1 << int(rng.integers(8))]), at + 1
        elif what == "card":
            at = start + (at - start) // 80 * 80
            values = ("-1", "0", "99999999", "1E30", "'x'", "T", "", "NAN", str(int(rng.integers(1000))))
            new, end = f"{values[rng.integers(len(values))]:>21}".encode(), at + 30
            at += 9
        elif what == "cut":
            yield Mutant(content[:at], what, at, len(content), False)
            continue
        elif what == "longer":
            yield Mutant(content + rng.bytes(int(rng.integers(1, 5000))), what, 0, 0, False)
            continue
        else:
            end = min(at + int(rng.integers(8, 4000)), stop)
            new = {"nan": b"\xff" * (end - at), "zeros": b"\0" * (end - at), "noise": rng.bytes(end - at)}[
                what
            ]
        in_data = any(a <= at and end <= b for a, b in regions)
        yield Mutant(content[:at] + new + content[end:], what, at, end, in_data)


def difference(before: Sequence[Spectra], after: Sequence[Spectra]) -> int:
    """The number of pixels that are good after the damage and not what they were before it."""
    # By their order, because a damaged table of targets changes names alone; by name where segments are missing.
    in_order = len(before) == len(after)
    keys = [
        i if in_order else (s.fact("segment")[0], s.fact("exposure")[0], len(s)) for i, s in enumerate(before)
    ]
    original = dict(zip(keys, before, strict=True))
    count = 0
    for i, spectra in enumerate(after):
        key = i if in_order else (spectra.fact("segment")[0], spectra.fact("exposure")[0], len(spectra))
        if key not in original:
            count += spectra.valid.sum()
            continue
        one = original[key]
        at = np.clip(np.searchsorted(one.wave, spectra.wave), 1, max(one.wave.size - 1, 1))
        at -= np.abs(one.wave[at - 1] - spectra.wave) < np.abs(one.wave[at] - spectra.wave)
        same = (one.wave[at] == spectra.wave) & (one.flux[:, at] == spectra.flux) & one.valid[:, at]
        if one.ivar is not None and spectra.ivar is not None:
            same &= one.ivar[:, at] == spectra.ivar
        count += int((spectra.valid & ~same).sum())
    return int(count)


def outcome(path: Path, mutant: Mutant, source: dict, before: Sequence[Spectra]) -> str:
    """What a reader makes of a mutant: "refused", "equal", "touched" or "changed".

    Raises:
      Exception: whatever but a SpectrumError the reader raises.
    """
    path.write_bytes(mutant.content)
    try:
        after = io.read_segments(path, source=source)
    except SpectrumError as error:
        if path.name not in str(error):
            raise RuntimeError(f"a message without the name of the file: {error}") from error
        return "refused"
    count = difference(before, after)
    if count == 0:
        return "equal"
    # A byte belongs to one pixel; one more where a number lies across the edges.
    return "touched" if mutant.in_data and count <= mutant.stop - mutant.start + 1 else "changed"


def damage(file: Path, source: dict, count: int, seed: int = 0) -> dict:
    """Reads mutants of a file; counts of outcomes, and the greatest time [s] and growth of memory [bytes]."""
    found: collections.Counter = collections.Counter()
    changed: collections.Counter = collections.Counter()
    content, slowest = file.read_bytes(), 0.0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / file.name
        path.write_bytes(content)
        before = io.read_segments(path, source=source)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for mutant in mutants(content, count, seed):
            start = time.process_time()
            got = outcome(path, mutant, source, before)
            slowest = max(slowest, time.process_time() - start)
            found[got] += 1
            if got == "changed":
                card = content[mutant.start // 80 * 80 :][:8].decode("latin-1").strip()
                changed[f"{mutant.what} {'' if mutant.in_data else card}".strip()] += 1
            if slowest > SECONDS:
                raise RuntimeError(f"{file}: {slowest:.1f} s for {mutant.what} at {mutant.start}")
    growth = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory)
    if growth > BYTES:
        raise RuntimeError(f"{file}: memory grew by {growth:.3g} bytes")
    return {**found, "where_changed": dict(changed), "slowest_s": round(slowest, 3), "memory_growth": growth}


def _copied(file: Path, source: dict, path: Path) -> dict:
    shutil.copyfile(file, path)
    return source


def hostile(kind: str, file: Path, source: dict, count: int) -> dict:
    """What a reader makes of hostile copies of a file, see `fuzzing.Fuzzed`."""
    sample = Sample(file.name, functools.partial(_copied, file, source))
    return fuzzing.fuzz({kind: sample}, count)[kind].told()


def speed(files: Sequence[Path], source: dict, seconds: float = 1.0) -> dict:
    """Files per second of processor time, the median size and the number of spectra in a file."""
    files = files[:100]
    first = io.read_segments(files[0], source=source)
    done, start = 0, time.process_time()
    while time.process_time() - start < seconds:
        io.read_segments(files[done % len(files)], source=source)
        done += 1
    taken = time.process_time() - start
    pixels = sum(s.flux.size for s in first)
    return {"files_per_s": round(done / taken, 1), "segments": len(first), "pixels": pixels}


DATA = flags.DEFINE_string("data", None, "Folder of the data; None = $REMAP_DATA.")
SMALL = flags.DEFINE_bool("small", False, "Hostile copies of small files of every reader, and nothing else.")
ONLY = flags.DEFINE_list("kinds", [], f"Some of {', '.join((*KINDS, *SAMPLES))}; none = all.")
MUTANTS = flags.DEFINE_integer("mutants", 1000, "Damaged copies of each kind.")
HOSTILE = flags.DEFINE_integer("hostile", 0, "Hostile copies of each kind.", lower_bound=0)
OUT = flags.DEFINE_string("out", None, "JSON file to write.")


def main(argv: Sequence[str]) -> None:
    """Runs what the flags say."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    results = {}
    for name in (ONLY.value or SAMPLES) if SMALL.value else ():
        results[name] = fuzzing.fuzz({name: SAMPLES[name]}, HOSTILE.value)[name].told()
        logger.info("%s: %s", name, json.dumps(results[name]))
    for kind in () if SMALL.value else ONLY.value or KINDS:
        preset, folder, pattern = KINDS[kind]
        if preset not in surveys.names():
            logger.info("%s: no survey %s", kind, preset)
            continue
        source = dict(surveys.get(preset).source)
        files = io.list_files(io.find_data(folder, root=DATA.value), pattern)
        results[kind] = {"preset": preset, **speed(files, source), **damage(files[0], source, MUTANTS.value)}
        if HOSTILE.value:
            results[kind]["hostile"] = hostile(kind, files[0], source, HOSTILE.value)
        logger.info("%s: %s", kind, json.dumps(results[kind]))
    if OUT.value:
        Path(OUT.value).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
