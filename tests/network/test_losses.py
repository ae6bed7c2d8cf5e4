"""The losses against plain loops in float64; missing labels, padding and extreme inputs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import cdist

from remap.network.losses import (
    cost_loss,
    focal_loss,
    masked_mean,
    multitask_loss,
    pairwise_distance,
    triplet_loss,
)

LABELS, STARS, BINS, FEATURES = 2, 9, 6, 4
REAL = np.array([[True] * 6, [True] * 4 + [False] * 2])  # the second label has two padded bins
WEIGHTS = {"gamma": 2.0, "cost_weight": 0.7, "triplet_weight": 0.3, "margin": 0.2, "label_weights": ()}

jit_multitask = jax.jit(functools.partial(multitask_loss, **WEIGHTS))
jit_triplet = jax.jit(functools.partial(triplet_loss, margin=0.2))
jit_triplet_grad = jax.jit(jax.grad(lambda e, c: masked_mean(*triplet_loss(e, c, margin=0.2))))


@jax.jit
def value_and_grads(logits, embedding, target, classes):
    def total(logits, embedding):
        terms = multitask_loss(logits, embedding, target, classes, **WEIGHTS)
        return terms.total, terms

    return jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(logits, embedding)


def make_case(seed=0, missing=((0, 3), (1, 0), (1, 8))):
    """Logits, embeddings, soft labels and classes (float32), with some labels missing."""
    rng = np.random.default_rng(seed)
    logits = np.where(REAL[:, None], rng.normal(size=(LABELS, STARS, BINS)) * 2, -np.inf)
    embedding = rng.normal(size=(LABELS, STARS, FEATURES))
    embedding /= np.linalg.norm(embedding, axis=-1, keepdims=True)
    # Class 3 has one star only: it has no positive, so its anchor is masked.
    classes = np.array([[0, 0, 1, 1, 2, 2, 3, 0, 1], [2, 2, 2, 0, 0, 1, 1, 1, 3]])
    target = np.where(REAL[:, None], rng.dirichlet(np.ones(BINS), size=(LABELS, STARS)), 0.0)
    for label, star in missing:
        classes[label, star] = -1
        target[label, star] = 0.0
    total = target.sum(axis=-1, keepdims=True)
    target = np.divide(target, total, out=np.zeros_like(target), where=total > 0)
    as32 = (jnp.asarray(a, jnp.float32) for a in (logits, embedding, target))
    return (*as32, jnp.asarray(classes, jnp.int32))


def reference_terms(
    logits, embedding, target, classes, *, gamma, cost_weight, triplet_weight, margin, label_weights
):
    """Eq. 7 by loops over labels, stars and bins, in float64."""
    weights = label_weights or [1.0] * LABELS
    logits, embedding, target = (np.asarray(a, np.float64) for a in (logits, embedding, target))
    classes = np.asarray(classes)
    terms = {name: [] for name in ("focal", "cost", "triplet", "nll")}
    for j in range(len(logits)):
        focal, cost, nll = [], [], []
        for i in range(len(classes[j])):
            if classes[j, i] < 0:
                continue
            real = np.isfinite(logits[j, i])
            u, y = logits[j, i][real], target[j, i][real]
            log_p = u - u.max() - np.log(np.sum(np.exp(u - u.max())))
            p = np.exp(log_p)
            focal.append(sum(-y[k] * (1 - p[k]) ** gamma * log_p[k] for k in range(len(y))))
            cost.append(sum((1 - y[k]) * p[k] for k in range(len(y))))
            nll.append(sum(-y[k] * log_p[k] for k in range(len(y))))
        losses, usable = reference_triplet(embedding[j], classes[j], margin)
        terms["focal"].append(np.mean(focal) if focal else 0.0)
        terms["cost"].append(np.mean(cost) if cost else 0.0)
        terms["nll"].append(np.mean(nll) if nll else 0.0)
        terms["triplet"].append(np.mean(losses[usable]) if usable.any() else 0.0)
    terms = {k: np.array(v) for k, v in terms.items()}
    per_label = terms["focal"] + cost_weight * terms["cost"] + triplet_weight * terms["triplet"]
    total = sum(w * value for w, value in zip(weights, per_label, strict=True))
    return {"total": total, **terms}


def reference_triplet(embedding, classes, margin):
    """Batch-hard triplets by loops: the loss of every anchor and whether it has both partners."""
    losses, usable = np.zeros(len(classes)), np.zeros(len(classes), bool)
    for a, label in enumerate(classes):
        if label < 0:
            continue
        near, far = [], []
        for b, other in enumerate(classes):
            if b != a and other >= 0:
                (far if other == label else near).append(np.linalg.norm(embedding[a] - embedding[b]))
        if near and far:
            usable[a] = True
            losses[a] = max(0.0, max(far) - min(near) + margin)
    return losses, usable


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_loss_equals_a_loop(gamma):
    logits, _, target, _ = make_case(missing=())
    log_p = jax.nn.log_softmax(logits)
    loss = np.asarray(focal_loss(log_p, target, gamma=gamma))
    p = np.exp(np.asarray(log_p, np.float64))
    for j in range(LABELS):
        for i in range(STARS):
            y = np.asarray(target, np.float64)[j, i]
            expected = sum(
                -y[k] * (1 - p[j, i, k]) ** gamma * np.log(p[j, i, k]) for k in range(BINS) if y[k]
            )
            np.testing.assert_allclose(loss[j, i], expected, rtol=2e-6)  # float32 sums of six terms


def test_focal_loss_keeps_the_digits_of_1_minus_p_where_p_is_almost_1():
    log_p = jnp.array([-1e-6, -13.8])
    loss = focal_loss(log_p, jnp.array([1.0, 0.0]), gamma=2.0)
    # Computed as 1 - exp(log p), the weight would be off by 5 %: float32 rounds 1 - 1e-6 to steps of 6e-8.
    np.testing.assert_allclose(loss, np.expm1(-1e-6) ** 2 * 1e-6, rtol=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e4, 1e30])
def test_focal_and_cost_are_finite_with_finite_gradients_at_any_logits(gamma, scale):
    u = jnp.array([[1.0, -1.0, 0.5, -jnp.inf], [-1.0, 1.0, 1.0, -jnp.inf]]) * scale
    y = jnp.array([[0.0, 1.0, 0.0, 0.0], [0.25, 0.5, 0.25, 0.0]])

    def loss(u):
        log_p = jax.nn.log_softmax(u)
        return jnp.sum(focal_loss(log_p, y, gamma=gamma) + cost_loss(log_p, y))

    value, grad = jax.value_and_grad(loss)(u)
    assert np.isfinite(value)
    assert np.isfinite(grad).all()
    assert not grad[:, 3].any()  # padding
    if scale == 1e4:  # the wrong star is charged its full logit difference, not a clipped logarithm
        np.testing.assert_allclose(value, 2e4 + 0.25 * 2e4 + 0.5 * np.log(2) * 0.5**gamma, rtol=1e-3)


def test_cost_loss_is_the_expected_cost_and_ignores_padding():
    logits, _, target, _ = make_case(missing=())
    log_p = jax.nn.log_softmax(logits)
    p, y = np.exp(np.asarray(log_p, np.float64)), np.asarray(target, np.float64)
    expected = [
        [sum((1 - y[j, i, k]) * p[j, i, k] for k in range(BINS)) for i in range(STARS)] for j in (0, 1)
    ]
    np.testing.assert_allclose(cost_loss(log_p, target), expected, rtol=1e-6)  # one float32 subtraction


def test_pairwise_distance_equals_scipy():
    e = make_case()[1][0]
    expected = cdist(np.asarray(e, np.float64), np.asarray(e, np.float64))
    apart = ~np.eye(STARS, dtype=bool)
    assert expected[apart].min() > 0.1
    found = np.asarray(jax.jit(pairwise_distance)(e))
    np.testing.assert_allclose(found[apart], expected[apart], atol=2e-6)  # |a|² + |b|² - 2ab rounds at 1e-7
    np.testing.assert_allclose(found[~apart], 0.0, atol=1e-3)  # the root of that rounding


def test_the_gradient_of_the_distance_is_finite_at_and_near_zero():
    e = jnp.array([[0.6, 0.8], [0.6, 0.8], [0.6, 0.8 + 1e-7], [0.6001, 0.7999], [-1.0, 0.0]])
    grad = jax.jit(jax.grad(lambda e: jnp.sum(pairwise_distance(e))))(e)
    assert np.isfinite(grad).all()
    assert np.abs(grad).max() < 2 * len(e)  # every distance pulls with a unit vector
    assert np.abs(grad[4]).max() > 1  # the far point is still pulled


def test_triplet_loss_equals_a_loop_and_masks_anchors_without_partners():
    _, embedding, _, classes = make_case()
    for e, c in zip(embedding, classes, strict=True):
        losses, usable = jit_triplet(e, c)
        expected, expected_usable = reference_triplet(np.asarray(e, np.float64), np.asarray(c), 0.2)
        assert usable.tolist() == expected_usable.tolist()
        assert 0 < expected_usable.sum() < STARS
        np.testing.assert_allclose(losses, expected, atol=2e-6)  # rounding of the distances


@pytest.mark.parametrize("classes", [[1] * STARS, list(range(STARS)), [-1] * STARS, [-1] * 8 + [2]])
def test_a_batch_without_any_triplet_costs_nothing_and_has_no_gradient(classes):
    embedding, classes = make_case()[1][0], jnp.asarray(classes, jnp.int32)
    losses, usable = jit_triplet(embedding, classes)
    assert not usable.any()
    assert not losses.any()
    grad = jit_triplet_grad(embedding, classes)
    np.testing.assert_array_equal(grad, 0.0)


def test_collapsed_embeddings_cost_the_margin_and_have_a_finite_gradient():
    embedding = jnp.full((STARS, FEATURES), 0.5)
    classes = jnp.asarray([0, 0, 0, 1, 1, 1, 2, 2, 2], jnp.int32)
    losses, usable = jit_triplet(embedding, classes)
    assert usable.all()
    np.testing.assert_array_equal(losses, np.float32(0.2))
    grad = jit_triplet_grad(embedding, classes)
    assert np.isfinite(grad).all()


def test_triplet_pulls_the_farthest_positive_and_pushes_the_nearest_negative():
    angle = np.array([0.0, 0.1, 1.0, 0.5, 2.5])
    embedding = jnp.asarray(np.stack([np.cos(angle), np.sin(angle)], axis=1), jnp.float32)
    classes = jnp.asarray([0, 0, 0, 1, 1], jnp.int32)
    grad = jax.grad(lambda e: jit_triplet(e, classes)[0][0])(embedding)
    moved = np.abs(np.asarray(grad)).max(axis=1) > 0
    assert moved.tolist() == [True, False, True, True, False]
    along = np.stack([-np.sin(angle), np.cos(angle)], axis=1)
    pull = np.sum(-np.asarray(grad) * along, axis=1)  # > 0: descent increases the angle
    assert pull[2] < 0 < pull[3]


def test_masked_mean_counts_true_entries_only_and_gives_zero_without_any():
    values = jnp.array([1.0, 5.0, jnp.nan])
    assert masked_mean(values, jnp.array([True, True, False])) == 3.0
    assert masked_mean(values, jnp.zeros(3, bool)) == 0.0


@pytest.mark.parametrize("missing", [(), ((0, 3), (1, 0), (1, 8)), tuple((1, i) for i in range(STARS))])
def test_multitask_loss_equals_a_loop(missing):
    case = make_case(missing=missing)
    terms = jit_multitask(*case)
    expected = reference_terms(*case, **WEIGHTS)
    for name, value in terms._asdict().items():
        np.testing.assert_allclose(value, expected[name], rtol=5e-6, atol=1e-6, err_msg=name)  # float32


def test_label_weights_multiply_the_labels_in_the_total_alone():
    """Weight 0: neither logits nor embedding of the label have a gradient, as if it had no head at all."""
    logits, embedding, target, classes = make_case()
    (_, plain), plain_grads = value_and_grads(logits, embedding, target, classes)
    for weights in ((1.0, 0.0), (0.5, 2.0)):
        change = WEIGHTS | {"label_weights": weights}

        def loss(u, e, change=change):
            terms = multitask_loss(u, e, target, classes, **change)
            return terms.total, terms

        (_, terms), grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(logits, embedding)
        expected = reference_terms(logits, embedding, target, classes, **change)["total"]
        np.testing.assert_allclose(terms.total, expected, rtol=5e-6)  # float32
        for a, b in zip(terms[1:], plain[1:], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)
        for grad, unweighted in zip(grads, plain_grads, strict=True):
            scaled = np.asarray(unweighted) * np.array(weights)[:, None, None]
            np.testing.assert_allclose(grad, scaled, rtol=1e-5, atol=1e-9)
        assert weights[1] or not (grads[0][1].any() or grads[1][1].any())
    with pytest.raises(ValueError, match=r"one weight for each of 2 labels, or none, found \(1.0,\)"):
        multitask_loss(logits, embedding, target, classes, **WEIGHTS | {"label_weights": (1.0,)})


def test_multitask_gradient_equals_finite_differences_of_the_loop():
    logits, embedding, target, classes = make_case()
    (_, _), grads = value_and_grads(logits, embedding, target, classes)
    rng = np.random.default_rng(1)
    step = 1e-6  # in float64: truncation 1e-12, rounding 1e-10
    for which, grad in enumerate(grads):
        for _ in range(3):
            direction = rng.normal(size=grad.shape)
            ends = []
            for sign in (1, -1):
                args = [np.asarray(logits, np.float64), np.asarray(embedding, np.float64)]
                args[which] = args[which] + sign * step * direction
                ends.append(reference_terms(*args, target, classes, **WEIGHTS)["total"])
            expected = (ends[0] - ends[1]) / (2 * step)
            found = np.sum(np.where(np.asarray(grad) == 0, 0, np.asarray(grad, np.float64) * direction))
            np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-6)  # float32 sums with both signs


def test_a_missing_label_has_exactly_no_influence():
    missing = ((0, 3), (1, 0), (1, 8))
    logits, embedding, target, classes = make_case(missing=missing)
    (_, terms), grads = value_and_grads(logits, embedding, target, classes)
    hidden = np.zeros((LABELS, STARS), bool)
    hidden[tuple(np.transpose(missing))] = True
    for grad in grads:
        np.testing.assert_array_equal(np.asarray(grad)[hidden], 0.0)
        assert (np.abs(np.asarray(grad)[~hidden]).max(axis=-1) > 0).any()
    other_logits, other_embedding, _, _ = make_case(seed=5, missing=missing)
    swapped = jnp.where(hidden[..., None], 100 * other_logits, logits)
    moved = jnp.where(hidden[..., None], other_embedding, embedding)
    (_, other_terms), other_grads = value_and_grads(swapped, moved, target, classes)
    for a, b in zip(
        jax.tree.leaves((terms, grads)), jax.tree.leaves((other_terms, other_grads)), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_padded_bins_get_no_gradient_and_take_no_probability():
    (_, _), (grad, _) = value_and_grads(*make_case())
    assert np.isfinite(grad).all()
    np.testing.assert_array_equal(np.asarray(grad)[1, :, 4:], 0.0)
    # The logits' gradient of a star sums to zero when all probability lies in the real bins.
    np.testing.assert_allclose(np.asarray(grad).sum(axis=-1), 0.0, atol=1e-6)
