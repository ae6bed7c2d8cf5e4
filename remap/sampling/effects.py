"""What else makes training spectra differ, besides noise: velocity, scattered light, a tilted continuum, gaps.

Pure functions of spectra before normalisation and of one value per spectrum; `augment.vary` draws the values and
has the order. They may be jitted, and none of them makes a NaN where the valid flux is finite.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from remap.config import ConfigError
from remap.spectra import SPEED_OF_LIGHT

POLE = np.sqrt(3.0) - 2.0  # of the filter that turns samples into coefficients of a cubic B-spline
TAIL = 10  # pixels after which that filter, which fades by 0.27 per pixel, is cut: 2e-6 of it


def shift_velocity(
    flux: Float[Array, "stars pixels"],
    valid: Bool[Array, "stars pixels"],
    wave: Float[Array, " pixels"],
    velocity: Float[Array, " stars"],
) -> tuple[Float[Array, "stars pixels"], Bool[Array, "stars pixels"]]:
    """Spectra as they would be at another radial velocity, on the same grid.

    Interpolates as `resample.resample` does: a cubic spline through the flux, invalid pixels bridged linearly, and
    a pixel is valid where those on both sides of its new place were. It is the flux and not its logarithm because
    observed flux may be zero or negative, and a B-spline and not a local cubic because that would smooth lines: one
    that is 2.8 pixels wide loses 0.8 % of its depth when shifted by half a pixel, with Catmull-Rom 2.7 %.

    Args:
      flux: any unit; without meaning where not valid.
      valid: True = good.
      wave: uniform grid [Å], N > 12. Air or vacuum, as in `spectra.doppler_shift`.
      velocity: [km/s], positive when receding (lines move to the red), below the speed of light.

    Returns:
      Flux and validity. Pixels that would come from beyond the ends are invalid and keep a finite flux.
    """
    pixels = flux.shape[1]
    step = (wave[-1] - wave[0]) / (pixels - 1)  # from the ends: neighbours differ by too little for float32
    # Where a pixel comes from, relative to it: (1/D - 1) λ / step with D = sqrt((1 + β) / (1 - β)), so
    # written that nothing cancels in float32.
    stretch = jnp.expm1(-jnp.arctanh(velocity / SPEED_OF_LIGHT))
    shift = stretch[:, None] * (wave / step)[None, :]
    whole = jnp.floor(shift)
    t = shift - whole
    left = jnp.arange(pixels)[None, :] + whole.astype(jnp.int32)
    right = left + (t > 0)

    # In the branches, although both end with the filter: compiled with the look-up below it, it would be computed
    # anew for each of the four neighbours of every pixel.
    coefficients = lax.cond(
        jnp.all(valid),
        lambda flux, _: _spline_coefficients(flux),
        lambda flux, valid: _spline_coefficients(_bridge(flux, valid)),
        flux,
        valid,
    )
    first = jnp.clip(left, -1, pixels - 1) + 1
    u = 1 - t
    weights = (u**3, 4 - 3 * t**2 * (1 + u), 4 - 3 * u**2 * (1 + t), t**3)
    shifted = sum(
        weight * jnp.take_along_axis(coefficients, first + i, axis=1) for i, weight in enumerate(weights)
    )

    def good(place: Array) -> Array:
        inside = (place >= 0) & (place < pixels)
        return inside & jnp.take_along_axis(valid, jnp.clip(place, 0, pixels - 1), axis=1)

    return shifted / 6, good(left) & good(right)


def _bridge(
    flux: Float[Array, "stars pixels"], valid: Bool[Array, "stars pixels"]
) -> Float[Array, "stars pixels"]:
    """Invalid pixels on straight lines between the valid ones, constant beyond the last of them; 0 without any."""
    pixels = flux.shape[1]
    place = jnp.broadcast_to(jnp.arange(pixels), flux.shape)
    left = lax.cummax(jnp.where(valid, place, -1), axis=1)
    right = lax.cummin(jnp.where(valid, place, pixels), axis=1, reverse=True)
    left, right = jnp.where(left < 0, right, left), jnp.where(right == pixels, left, right)
    left, right = jnp.minimum(left, pixels - 1), jnp.maximum(right, 0)
    share = (place - left) / jnp.maximum(right - left, 1)
    flux = jnp.where(valid, flux, 0.0)
    low, high = (jnp.take_along_axis(flux, side, axis=1) for side in (left, right))
    return jnp.where(valid, flux, low + share * (high - low))


def _spline_coefficients(flux: Float[Array, "stars pixels"]) -> Float[Array, "stars pixels+4"]:
    """Coefficients of the cubic B-spline through the flux, for two pixels more at either end.

    The flux is continued by point reflection, as if the spline were a natural one. The inverse filter is
    sqrt(3) POLE^|k| (Unser 1999, IEEE Signal Process. Mag. 16, 22), here cut and with a sum of exactly 1.
    """
    taps = POLE ** np.arange(TAIL + 1)
    taps /= taps[0] + 2 * taps[1:].sum()
    count = flux.shape[1] + 4
    wide = jnp.pad(flux, ((0, 0), (TAIL + 2, TAIL + 2)), mode="reflect", reflect_type="odd")

    def part(offset: int) -> Array:
        return lax.slice_in_dim(wide, TAIL + offset, TAIL + offset + count, axis=1)

    return sum(
        (float(taps[k]) * (part(-k) + part(k)) for k in range(1, TAIL + 1)), start=float(taps[0]) * part(0)
    )


def add_scattered_light(
    flux: Float[Array, "stars pixels"],
    valid: Bool[Array, "stars pixels"],
    fraction: Float[Array, " stars"],
) -> Float[Array, "stars pixels"]:
    """Spectra of which `fraction` of the light has been spread evenly over the arm.

    (1 - f) F + f · (mean of F over the valid pixels): what a diffuse veil in a spectrograph does. It keeps the mean
    flux, makes every difference between pixels smaller by f, and needs no further number. A local level would need
    the width over which light scatters, and where that is not much wider than the line spread it would be the line
    spread once more.
    """
    count = jnp.maximum(jnp.sum(valid, axis=1), 1)
    mean = jnp.sum(jnp.where(valid, flux, 0.0), axis=1) / count
    return (1 - fraction)[:, None] * flux + (fraction * mean)[:, None]


def tilt_continuum(
    flux: Float[Array, "stars pixels"], slope: Float[Array, " stars"]
) -> Float[Array, "stars pixels"]:
    """Flux times 1 + slope · x, with x from -1 at the first pixel to 1 at the last."""
    return flux * (1 + slope[:, None] * jnp.linspace(-1, 1, flux.shape[1])[None, :])


def cut_gaps(
    flux: Float[Array, "stars pixels"],
    valid: Bool[Array, "stars pixels"],
    starts: Int[Array, "stars gaps"],
    lengths: Int[Array, "stars gaps"],
) -> tuple[Float[Array, "stars pixels"], Bool[Array, "stars pixels"]]:
    """Flux 0 and invalid in the runs of pixels start, ..., start + length - 1; runs may overlap, length 0 is none."""
    place = jnp.arange(flux.shape[1])[None, None, :]
    gone = jnp.any((place >= starts[..., None]) & (place < (starts + lengths)[..., None]), axis=1)
    return jnp.where(gone, 0.0, flux), valid & ~gone


def draw_gaps(
    key: Array, stars: int, pixels: int, *, gaps: int, gap_pixels: int
) -> tuple[Int[Array, "stars gaps"], Int[Array, "stars gaps"]]:
    """Random runs for `cut_gaps`: 0 to `gaps` of them, 1 to `gap_pixels` long, wholly inside, all equally likely.

    Raises:
      ValueError: the runs could cover the whole spectrum.
    """
    if gaps * gap_pixels >= pixels:
        raise ConfigError(
            f"augment: expected gaps × gap_pixels below the {pixels} pixels of an arm, found {gaps} × {gap_pixels}"
        )
    count_key, length_key, start_key = jax.random.split(key, 3)
    count = jax.random.randint(count_key, (stars, 1), 0, gaps + 1)
    lengths = jax.random.randint(length_key, (stars, gaps), 1, gap_pixels + 1)
    starts = jax.random.randint(start_key, (stars, gaps), 0, pixels + 1 - lengths)
    return starts, jnp.where(jnp.arange(gaps)[None, :] < count, lengths, 0)
