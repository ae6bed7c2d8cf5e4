"""The networks of an arm as ONNX, for runtimes that know nothing of JAX; continuum and calibration stay out.

The conversion is that of jax2onnx (the extra `onnx`). It has no rule for heads under `vmap`, so that it gets the
program as JAX has traced it, and what it makes of the bridging of bad pixels onnxruntime refuses: in goes
the normalised flux without bad pixels.
"""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
from jax import export as jax_export
from jax.extend.core import jaxpr_as_fun
from jaxtyping import Array

from remap.config import ConfigError
from remap.network.resnet import ResNet1D
from remap.predict.ensemble import Network
from remap.predict.predictor import Predictor
from remap.store.atomic import check_writable, write_files

SUFFIX = ".onnx"


def export_onnx(predictor: Predictor, path: str | Path, *, overwrite: bool = False) -> dict[str, Path]:
    """Writes the networks of each arm as NAME_ARM.onnx: one input, float32[S, N], one output, float32[L, S, K].

    In goes flux over continuum on the arm's grid, bad pixels bridged (`remap.network.resnet.bridge`); what comes out
    is the mean PMF over the arm's networks, 0 in padded bins. S may be any number.

    Args:
      predictor: from `remap.load`.
      path: NAME.onnx.
      overwrite: replace files that are there.

    Returns:
      Arm -> its file.

    Raises:
      ConfigError: another suffix, or jax2onnx is missing.
      FileExistsError: there is such a file.
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        raise ConfigError(f"{path}: expected a name that ends with {SUFFIX}, found {path.name!r}")
    files = {arm: path.with_name(f"{path.stem}_{arm}{SUFFIX}") for arm in predictor.networks}
    if there := [str(file) for file in files.values() if file.exists() and not overwrite]:
        raise FileExistsError(f"{', '.join(there)}: exists already; choose another name, or overwrite it")
    for file in files.values():
        check_writable(file)
    try:
        import jax2onnx
    except ImportError as error:
        raise ConfigError("ONNX needs jax2onnx: pip install 'deep-remap[onnx]'") from error
    contents = {}
    for arm, network in predictor.networks.items():
        (stars,) = jax_export.symbolic_shape("stars")
        shape = jax.ShapeDtypeStruct((stars, len(predictor.preprocessing.wave(arm))), jnp.float32)
        run = jaxpr_as_fun(jax.make_jaxpr(lambda flux, network=network: mean_pmf(network, flux))(shape))
        model = jax2onnx.to_onnx(lambda flux, run=run: run(flux)[0], [shape], model_name=f"remap_{arm}")
        contents[files[arm]] = model.SerializeToString()
    write_files({file: lambda out, content=content: out.write(content) for file, content in contents.items()})
    return files


def mean_pmf(network: Network, flux: Array) -> Array:
    """float32[L, S, K]: the mean over an arm's networks, of normalised flux float32[S, N] without bad pixels."""
    # Without bad pixels both ways to treat them are one, and this one bridges nothing.
    settings = network.model.settings
    told = ResNet1D(type(settings)(**{**vars(settings), "masked": "told"}), network.model.bin_mask)
    valid = jnp.ones_like(flux, dtype=bool)
    pmfs = [
        jax.nn.softmax(told.apply(member, flux, valid, train=False, running=True).logits)
        for member in network.members
    ]
    return sum(pmfs[1:], pmfs[0]) / len(pmfs)
