"""Losses: focal classification with a cost vector, batch-hard triplets, and their sum (paper §4.3, 4.4, 5).

Every loss takes one label at a time and returns one number per star with a mask, so that a missing label
takes no part in any mean. `multitask_loss` runs them over the leading label axis.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from remap.config import ConfigError


class LossTerms(NamedTuple):
    """What `multitask_loss` adds up; every entry is a mean over the stars that have the label."""

    total: Float[Array, ""]  # eq. 7; the others are without the labels' weights
    focal: Float[Array, " labels"]
    cost: Float[Array, " labels"]
    triplet: Float[Array, " labels"]
    nll: Float[Array, " labels"]  # cross-entropy with the soft label, nats; for reports, not in the total


def focal_loss(
    log_p: Float[Array, "... bins"], target: Float[Array, "... bins"], *, gamma: float
) -> Float[Array, ...]:
    """Focal loss on soft labels: Σ_i -y_i (1 - p_i)^γ log p_i.

    Args:
      log_p: log-probabilities; -inf is allowed where `target` is 0 (padding).
      target: soft label y, summing to 1 (or all 0 for a missing label).
      gamma: γ >= 0; 0 gives the cross-entropy.

    Returns:
      The loss, nats.

    References:
      Lin et al. 2017, arXiv:1708.02002, eq. 4.

    Examples:
      >>> import jax.numpy as jnp
      >>> p, y = jnp.array([0.7, 0.2, 0.1]), jnp.array([1.0, 0.0, 0.0])
      >>> [f"{float(focal_loss(jnp.log(p), y, gamma=gamma)):.4f}" for gamma in (0.0, 2.0)]
      ['0.3567', '0.0321']
    """
    log_p = jnp.where(target > 0, log_p, 0.0)  # the term is 0 there, and 0 · -inf would be NaN
    # 1 - p from log p without cancellation; kept off 0, where the gradient of a power γ < 1 is infinite.
    miss = jnp.maximum(-jnp.expm1(log_p), jnp.finfo(log_p.dtype).tiny)
    weight = miss**gamma if gamma else jnp.ones_like(log_p)
    return -jnp.sum(target * weight * log_p, axis=-1)


def cost_loss(log_p: Float[Array, "... bins"], target: Float[Array, "... bins"]) -> Float[Array, ...]:
    """Expected cost Σ_i c_i p_i with the cost vector c = 1 - y (paper §5 v).

    As Σ p_i = 1 this equals 1 - Σ y_i p_i, which needs no mask for padded bins.
    """
    return 1.0 - jnp.sum(target * jnp.exp(log_p), axis=-1)


def pairwise_distance(embedding: Float[Array, "stars features"]) -> Float[Array, "stars stars"]:
    """Euclidean distances between all rows; the gradient at zero distance is zero, not infinite."""
    square = jnp.sum(embedding**2, axis=1)
    product = jnp.matmul(embedding, embedding.T, precision="highest")  # the difference below cancels
    d2 = square[:, None] + square[None, :] - 2.0 * product
    positive = d2 > 1e-12
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, d2, 1.0)), 0.0)


def triplet_loss(
    embedding: Float[Array, "stars features"], classes: Int[Array, " stars"], *, margin: float
) -> tuple[Float[Array, " stars"], Bool[Array, " stars"]]:
    """Batch-hard triplet loss: [max D(a, p) - min D(a, n) + m]_+ for every anchor a (eq. 1).

    Args:
      embedding: L2-normalised embeddings of a batch.
      classes: class of each star; stars of class -1 (label unknown) take no part in any role.
      margin: m.

    Returns:
      The loss of each anchor, and True for the anchors that have both a positive and a negative; the other
      entries are 0 and must stay out of the mean.

    References:
      Hermans et al. 2017, arXiv:1703.07737, eq. 5.
    """
    distance = pairwise_distance(embedding)
    known = classes >= 0
    pair = known[:, None] & known[None, :]
    same = classes[:, None] == classes[None, :]
    positive = pair & same & ~jnp.eye(classes.shape[0], dtype=bool)
    negative = pair & ~same
    far = jnp.max(jnp.where(positive, distance, -jnp.inf), axis=1)
    near = jnp.min(jnp.where(negative, distance, jnp.inf), axis=1)
    usable = jnp.any(positive, axis=1) & jnp.any(negative, axis=1)
    gap = jnp.where(usable, far, 0.0) - jnp.where(usable, near, 0.0) + margin
    return jnp.where(usable, jax.nn.relu(gap), 0.0), usable


def masked_mean(values: Float[Array, " stars"], mask: Bool[Array, " stars"]) -> Float[Array, ""]:
    """Mean over the True entries; 0 if there is none."""
    return jnp.sum(jnp.where(mask, values, 0.0)) / jnp.maximum(jnp.sum(mask), 1)


def multitask_loss(
    logits: Float[Array, "labels stars bins"],
    embedding: Float[Array, "labels stars features"],
    target: Float[Array, "labels stars bins"],
    classes: Int[Array, "labels stars"],
    *,
    gamma: float,
    cost_weight: float,
    triplet_weight: float,
    margin: float,
    label_weights: tuple[float, ...],
) -> LossTerms:
    """Sum over the labels of focal + κ·cost + λ·triplet (eq. 7), each label with its weight.

    Args:
      logits: already divided by the temperature; -inf in padded bins.
      embedding: L2-normalised, one per label.
      target: soft labels; all zeros marks a missing label, whose terms are masked.
      classes: bin of each label, -1 where missing.
      gamma: focal exponent γ.
      cost_weight: κ.
      triplet_weight: λ.
      margin: triplet margin m.
      label_weights: weight of each label in the total; () = 1 for all (paper).

    Raises:
      ValueError: another number of weights than labels.
    """
    if label_weights and len(label_weights) != logits.shape[0]:
        raise ConfigError(
            f"loss.label_weights: expected one weight for each of {logits.shape[0]} labels, or none, "
            f"found {label_weights}"
        )

    def one(u: Array, e: Array, y: Array, c: Array) -> tuple[Array, Array, Array, Array]:
        log_p = jax.nn.log_softmax(u)
        known = (c >= 0) & (jnp.sum(y, axis=-1) > 0)
        focal = masked_mean(focal_loss(log_p, y, gamma=gamma), known)
        cost = masked_mean(cost_loss(log_p, y), known)
        triplet = masked_mean(*triplet_loss(e, c, margin=margin))
        nll = masked_mean(focal_loss(log_p, y, gamma=0.0), known)
        return focal, cost, triplet, nll

    focal, cost, triplet, nll = jax.vmap(one)(logits, embedding, target, classes)
    weights = jnp.asarray(label_weights or (1.0,) * logits.shape[0])
    total = jnp.sum(weights * (focal + cost_weight * cost + triplet_weight * triplet))
    return LossTerms(total, focal, cost, triplet, nll)


@dataclasses.dataclass(frozen=True)
class LossSettings:
    """Weights of the loss (config section `loss`); see `losses.multitask_loss`."""

    gamma: float = 2.0
    cost_weight: float = 1.0
    triplet_weight: float = 0.001
    margin: float = 0.2
    label_weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if any(w < 0 for w in self.label_weights) or (self.label_weights and not any(self.label_weights)):
            raise ConfigError(
                f"loss.label_weights: expected weights >= 0, one of them positive, found {self.label_weights}"
            )
