"""Trained networks as one file that runs without this package: JAX, NumPy and flatbuffers are enough.

The file is an npz:

program      uint8[...], what `jax.export` makes of `make_program`: StableHLO with the weights in it
about        JSON: arms, labels, line spread, normaliser, calibration, networks and their hashes, SHA-256 of `program`
wave/ARM     float64[N], Å, the grid of an arm
fwhm/ARM     float64[N], Å, the line spread of the spectra that go in
edges/LABEL  float64[K + 1], of the bins

The program takes any number of spectra, on CPU, GPU or TPU. docs/export.md has the script that runs it.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export
from jaxtyping import Array, Bool, Float

from remap._version import __version__
from remap.config import ConfigError
from remap.continuum.normalizers import get_normalizer
from remap.pmf import jitted
from remap.pmf.calibration import Calibration
from remap.predict.ensemble import Network
from remap.predict.predictor import Predictor
from remap.store.atomic import check_writable, write_files
from remap.store.checkpoint import plain

FORMAT = 1  # raised when scripts for older files could not run what is written
PLATFORMS = ("cpu", "cuda", "tpu")
SUFFIX = ".npz"


def export(
    predictor: Predictor,
    path: str | Path,
    *,
    platforms: Sequence[str] = PLATFORMS,
    overwrite: bool = False,
) -> int:
    """Writes trained networks as one file that runs without this package.

    An expert, references of neighbours and all that is done to spectra before they are on the arms' grids stay
    behind: the program is `Predictor.without_expert` from there on. PMFs agree with those of the catalogue to 1e-5.

    Args:
      predictor: from `remap.load`.
      path: of the file, NAME.npz.
      platforms: that the program is made for: "cpu", "cuda", "rocm", "tpu".
      overwrite: replace a file that is there.

    Returns:
      Its size in bytes.

    Raises:
      ConfigError: another suffix, an unknown platform, flatbuffers is missing, or a calibration that is no
        `Calibration`.
      FileExistsError: there is such a file.
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        raise ConfigError(f"{path}: expected a name that ends with {SUFFIX}, found {path.name!r}")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path}: exists already; choose another name, or overwrite it")
    check_writable(path)
    if unknown := sorted(set(platforms) - {*PLATFORMS, "rocm"}) or not platforms:
        raise ConfigError(f"platforms: expected some of {(*PLATFORMS, 'rocm')}, found {unknown or 'none'}")
    predictor = predictor.without_expert()
    content = _serialized(predictor, tuple(platforms))
    about = describe(predictor, content, tuple(platforms))
    arrays = {"program": np.frombuffer(content, np.uint8), "about": np.array(json.dumps(about, indent=1))}
    inputs = predictor.preprocessing
    for arm in predictor.networks:
        arrays |= {f"wave/{arm}": inputs.wave(arm), f"fwhm/{arm}": inputs.fwhm(arm)}
    arrays |= {f"edges/{b.name}": np.asarray(b.edges, np.float64) for b in inputs.labels}
    kept = io.BytesIO()
    np.savez_compressed(kept, **arrays)
    write_files({path: lambda file: file.write(kept.getbuffer())})
    return kept.getbuffer().nbytes


def make_program(predictor: Predictor) -> Callable[..., dict[str, Any]]:
    """The pure function from spectra on the arms' grids to PMFs, to be jitted or exported.

    Returns:
      f(flux, valid, snr), each arm -> array: float32[S, N] in any unit, bool[S, N] (True = good), float32[S] per
      pixel (NaN = not known). It gives a dict:
        "pmf": label -> float32[S, K], combined and calibrated: the catalogue's; NaN where no arm can be used.
        "combined": the same before the calibration.
        "arms": arm -> label -> float32[S, K], mean over the arm's networks; NaN where the arm is not used.
        "used": arm -> bool[S], the arm has enough valid pixels and a finite PMF.
        "trouble": arm -> bool[S], the normaliser raised a flag.
        "calibrated": bool[S], the widths were fitted to stars of this kind.

    Raises:
      ConfigError: a calibration that is no `Calibration`.
    """
    calibration = predictor.calibration
    if calibration is not None and not isinstance(calibration, Calibration):
        raise ConfigError(f"expected one calibration for all stars, found {type(calibration).__name__}")
    labels, limits = predictor.preprocessing.labels, predictor.config["predict"]
    edges = {b.name: np.asarray(b.edges, np.float64) for b in labels}
    arms = {arm: _arm_program(predictor, arm, network) for arm, network in predictor.networks.items()}

    def run(
        flux: Mapping[str, Float[Array, "stars _"]],
        valid: Mapping[str, Bool[Array, "stars _"]],
        snr: Mapping[str, Float[Array, " stars"]],
    ) -> dict[str, Any]:
        found = {arm: one(flux[arm], valid[arm]) for arm, one in arms.items()}
        finite = {arm: jnp.all(jnp.isfinite(pmf), axis=(0, 2)) for arm, (pmf, _, _) in found.items()}
        lost = [used & ~finite[arm] for arm, (_, used, _) in found.items()]
        good = ~jnp.any(jnp.stack(lost), axis=0)
        used = {arm: use & good for arm, (_, use, _) in found.items()}
        present = jnp.stack(list(used.values()))
        single = {
            arm: jnp.where(used[arm][None, :, None], pmf, jnp.nan) for arm, (pmf, _, _) in found.items()
        }
        joint = {
            b.name: jitted.combine(
                jnp.stack([pmf[j, :, : b.bins] for pmf in single.values()]),
                present,
                method=limits["combine"],
                prior=predictor.prior(j, b.bins),
            )
            for j, b in enumerate(labels)
        }
        out = jitted.Calibrated(joint, jnp.zeros_like(good))
        if calibration is not None:
            noise = _mean_over_arms(jnp.stack([snr[arm] for arm in used]), present)
            out = jitted.calibrate(calibration, joint, edges, used, noise)
        return {
            "pmf": out.pmf,
            "combined": joint,
            "arms": {
                arm: {b.name: pmf[j, :, : b.bins] for j, b in enumerate(labels)}
                for arm, pmf in single.items()
            },
            "used": used,
            "trouble": {arm: trouble for arm, (_, _, trouble) in found.items()},
            "calibrated": out.covered,
        }

    return run


def describe(predictor: Predictor, program: bytes, platforms: Sequence[str]) -> dict[str, Any]:
    """What a file says about itself, as JSON values."""
    inputs = predictor.preprocessing
    kind, _ = inputs.spreads
    return plain(
        {
            "format": FORMAT,
            "software": f"deep-REMAP {__version__}",
            "jax": jax.__version__,
            "platforms": list(platforms),
            "name": predictor.config["name"],
            "sha256": hashlib.sha256(program).hexdigest(),
            "arms": {
                arm: {
                    "start": float(inputs.arms[arm][0]),
                    "stop": float(inputs.arms[arm][1]),
                    "step": float(inputs.arms[arm][2]),
                    "pixels": len(inputs.wave(arm)),
                }
                for arm in predictor.networks
            },
            "medium": inputs.medium,
            "line_spread": {"kind": kind, "values": list(inputs.spreads[1])},
            "labels": [{"name": b.name, "unit": b.unit, "bins": int(b.bins)} for b in inputs.labels],
            "continuum": inputs.continuum,
            "preprocessing_version": inputs.version,
            "min_coverage": predictor.config["predict"]["min_coverage"],
            "combine": predictor.config["predict"]["combine"],
            "calibration": None if predictor.calibration is None else predictor.calibration.to_json(),
            "stage": predictor.description.get("stage", ""),
            "networks": predictor.weights,
        }
    )


def _arm_program(
    predictor: Predictor, arm: str, network: Network
) -> Callable[[Array, Array], tuple[Array, Array, Array]]:
    """(flux[S, N], valid[S, N]) -> mean PMF [L, S, K], whether an arm can be used, whether there was trouble."""
    method = get_normalizer(predictor.preprocessing.continuum["name"])
    settings = predictor.preprocessing.continuum_settings(arm)
    pixels = len(predictor.preprocessing.wave(arm))
    counts = np.arange(pixels + 1) / pixels
    least = int(np.argmax(counts >= predictor.config["predict"]["min_coverage"]))
    # One network's program, run for each member: as many copies would take as many times as long to compile.
    members = jax.tree.map(lambda *leaves: np.stack([np.asarray(x) for x in leaves]), *network.members)

    def normalize(mapping: str) -> Callable[[Array, Array], tuple[Array, Array]]:
        def run(flux: Array, valid: Array) -> tuple[Array, Array]:
            out = method.normalize_batch(flux, valid, settings=settings, mapping=mapping)
            return out.flux, out.flags != 0

        return run

    def run(flux: Array, valid: Array) -> tuple[Array, Array, Array]:
        used = (jnp.sum(valid, axis=1) >= least) & jnp.any((flux > 0) & valid, axis=1)
        normal, trouble = jax.lax.platform_dependent(
            flux, valid, cpu=normalize("one by one"), default=normalize("at once")
        )

        def member(variables: Any) -> Array:
            return jax.nn.softmax(
                network.model.apply(variables, normal, valid, train=False, running=True).logits
            )

        return jnp.mean(jax.lax.map(member, members), axis=0), used, trouble

    return run


def _serialized(predictor: Predictor, platforms: tuple[str, ...]) -> bytes:
    """The program with the weights in it, for any number of spectra."""
    (stars,) = jax_export.symbolic_shape("stars")
    pixels = {arm: len(predictor.preprocessing.wave(arm)) for arm in predictor.networks}
    flux = {arm: jax.ShapeDtypeStruct((stars, n), jnp.float32) for arm, n in pixels.items()}
    valid = {arm: jax.ShapeDtypeStruct((stars, n), bool) for arm, n in pixels.items()}
    snr = {arm: jax.ShapeDtypeStruct((stars,), jnp.float32) for arm in pixels}
    program = jax.jit(make_program(predictor))
    try:
        return bytes(jax_export.export(program, platforms=platforms)(flux, valid, snr).serialize())
    except ImportError as error:
        raise ConfigError("an export needs flatbuffers: pip install 'deep-remap[export]'") from error


def _mean_over_arms(values: Array, used: Array) -> Array:
    """float32[S]: mean over the used arms of float32[A, S], NaN without any."""
    keep = used & jnp.isfinite(values)
    count = jnp.sum(keep, axis=0)
    mean = jnp.sum(jnp.where(keep, values, 0.0), axis=0) / jnp.maximum(count, 1)
    return jnp.where(count > 0, mean, jnp.nan)
