"""The networks of a working folder that predict together: read, known to belong together, and run one by one."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from remap import sharding
from remap.config import ConfigError
from remap.continuum.normalizers import Normalizer
from remap.network.resnet import ResNet1D, build_model
from remap.preprocess.description import Preprocessing
from remap.store import checkpoint
from remap.store.checkpoint import check_equal, unstack
from remap.store.workdir import check_preprocessing, finished_folds, network_description, stage_folder

# What the networks of one ensemble need not share.
_OWN = ("arm", "fold", "step", "preprocessing")


class Network(NamedTuple):
    """The members of one arm."""

    model: ResNet1D
    members: tuple[Any, ...]  # variables of each
    folds: tuple[int, ...]  # of each member, -1 where the stage has none
    steps: tuple[int, ...]  # training steps of each network on disk; snapshots of one share theirs
    prior: np.ndarray | None = None  # float[L, K], PMFs of the labels in training, mean over the networks
    weights: Mapping[int, str] = MappingProxyType({})  # fold -> hash of the network on disk


class Ensemble(NamedTuple):
    """The networks of all arms."""

    networks: dict[str, Network]
    description: dict[
        str, Any
    ]  # of their training, what all of them share: stage, config, split (if fine-tuned)


def read_ensemble(
    workdir: Path, preprocessing: Preprocessing, stage: str, folds: Sequence[int] | None
) -> Ensemble:
    """The finished networks of a stage, all arms.

    Args:
      folds: of the fine-tuned networks to use; None = all that were fine-tuned together, which must all be there.

    Raises:
      FileNotFoundError: there is no finished network of an arm or fold.
      ConfigError: the networks do not belong together (names two folders and both values of what differs), are
        damaged, two of them are one, or a fold is missing; they were trained with another preprocessing than
        `preprocessing`, or lie in the folder of another arm, fold or stage.
    """
    networks: dict[str, Network] = {}
    first, description = None, {}
    known: dict[str, Path] = {}
    if stage == "finetune" and folds is None:
        folds = complete_folds(workdir, tuple(preprocessing.arms))
    if stage == "finetune" and not folds:
        raise ConfigError(f"{workdir}: expected at least one fold to use, found none asked for")
    for arm in preprocessing.arms:
        members, owners, priors, steps, weights = [], [], [], [], {}
        for fold, folder in _folders(workdir, stage, arm, folds).items():
            variables, meta = checkpoint.load_final(folder / "final")
            check_preprocessing(meta["preprocessing"], preprocessing.to_json(), str(folder))
            place = {"stage": stage, "arm": arm} | ({"fold": fold} if stage == "finetune" else {})
            checkpoint.check_place(meta, folder, **place)
            if first is None:
                first, description = folder, describe_training(meta)
            check_equal(
                describe_training(meta),
                description,
                f"{folder}: expected a network of the same training as {first}",
            )
            priors.append(variables.pop("prior", None))
            weights[fold] = checkpoint.array_hash(variables)
            if (other := known.setdefault(weights[fold], folder)) != folder:
                raise ConfigError(
                    f"{folder}: holds the network of {other} once more; bring back its own, or train it again"
                )
            kept = meta["config"][stage].get("average") == "snapshots"
            own = unstack(variables) if kept else [variables]
            members += [jax.tree.map(jnp.asarray, member) for member in own]
            owners += [fold] * len(own)
            steps.append(int(meta["step"]))
        model = build_model(description["config"]["model"], preprocessing.labels)
        prior = None if any(p is None for p in priors) else np.mean(priors, axis=0)
        networks[arm] = Network(model, tuple(members), tuple(owners), tuple(steps), prior, weights)
    return Ensemble(networks, description)


def averaged(network: Network) -> Network:
    """One network in place of the members: the mean of their weights (Wortsman et al. 2022, arXiv:2203.05482).

    Members that were fine-tuned from one network stay in one basin of the loss, as do the ends of cycles that the
    paper averages (§5 i, eq. 5): the mean says what the mean of their PMFs says, at a fraction of size and cost.

    Raises:
      ConfigError: members whose batch statistics differ (`finetune.freeze_stats` is off): their mean would belong to
        none of the weights.
    """
    first, *others = network.members
    for other in others:
        same = jax.tree.map(
            lambda a, b: bool(jnp.array_equal(a, b)), *(m["batch_stats"] for m in (first, other))
        )
        if not all(jax.tree.leaves(same)):
            raise ConfigError(
                "expected networks with the same batch statistics to average, found others: fine-tune with "
                "finetune.freeze_stats, or keep all networks"
            )
    mean = jax.tree.map(lambda *leaves: jnp.mean(jnp.stack(leaves), axis=0), *network.members)
    mean = {**mean, "batch_stats": first["batch_stats"]}
    return network._replace(
        members=(mean,), folds=(-1,), steps=(max(network.steps),), weights={-1: checkpoint.array_hash(mean)}
    )


def _folders(workdir: Path, stage: str, arm: str, folds: Sequence[int] | None) -> dict[int, Path]:
    """Fold (-1 where the stage has none) -> the folder of its network."""
    if stage in ("pretrain", "align"):
        return {-1: stage_folder(workdir, stage, arm)}
    if stage != "finetune":
        raise ConfigError(f"stage must be 'pretrain', 'align' or 'finetune', found {stage!r}")
    return {fold: stage_folder(workdir, stage, arm, fold) for fold in folds or ()}


def complete_folds(workdir: Path, arms: Sequence[str]) -> list[int]:
    """The folds that have finished, of all arms, if none is missing of those that were fine-tuned together.

    Every network keeps which folds its run was asked for (`split.run`); folds may have been run one by one.

    Raises:
      FileNotFoundError: an arm has no finished network.
      ConfigError: a fold is missing; says which are there, and how to use these alone.
    """
    finished = {arm: finished_folds(workdir, arm) for arm in arms}
    asked: set[int] = set()
    for arm, folds in finished.items():
        if not folds:
            raise FileNotFoundError(
                f"{workdir}: expected a fine-tuned network for arm {arm}, found none; run launch.finetune, "
                "or predict with the stage 'pretrain'"
            )
        for fold in folds:
            meta = checkpoint.read_meta(stage_folder(workdir, "finetune", arm, fold) / "final")
            asked |= {fold, *meta.get("split", {}).get("run", ())}
    for arm, folds in finished.items():
        if missing := sorted(asked - set(folds)):
            both = sorted(set.intersection(*map(set, finished.values())))
            raise ConfigError(
                f"{workdir / 'finetune' / arm}: expected the finished networks of the folds {sorted(asked)}, which "
                f"were fine-tuned together, found none of {missing}: run launch.finetune to its end, or ask for "
                f"the others alone (folds={both}, --folds={','.join(map(str, both))})"
            )
    return sorted(asked)


def describe_training(meta: Mapping[str, Any]) -> dict[str, Any]:
    """What the networks of an ensemble share, from the description that one of them is kept with."""
    out = {key: value for key, value in meta.items() if key not in _OWN}
    return out | (network_description(meta) if "split" in meta else {})


def check_config(description: Mapping[str, Any], config: Mapping[str, Any], where: str) -> None:
    """Refuses a config that contradicts the networks. Fields that only one of both knows are of another version.

    Args:
      description: of an `Ensemble`.
      config: as plain JSON values.

    Raises:
      ConfigError: names `where` and both values of every difference.
    """
    trained = {**description["config"], **({"split": description["split"]} if "split" in description else {})}
    check_common(trained, config, f"{where}: networks of other settings than those of the config")


def check_common(
    found: Mapping[str, Any], config: Mapping[str, Any], where: str, *, free: Sequence[str] = ()
) -> None:
    """Compares recorded sections of a config with those of today, except the fields `free`.

    Raises:
      ConfigError: a section is missing, or a field that both have differs.
    """
    pair: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for name, value in found.items():
        own = config.get(name, "nothing")
        if isinstance(value, Mapping) and isinstance(own, Mapping):
            if name == "libraries":  # sections by name: these must be the same, whatever fields each has
                shared = {key: _shared(value[key], own[key], ()) for key in value.keys() & own.keys()}
                value = {**value, **{key: mine for key, (mine, _) in shared.items()}}
                own = {**own, **{key: theirs for key, (_, theirs) in shared.items()}}
            else:
                value, own = _shared(value, own, free)
        pair[0][name], pair[1][name] = value, own
    check_equal(*pair, where)


def _shared(
    a: Mapping[str, Any], b: Mapping[str, Any], free: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Two sections without the fields that only one of them has, and without those that are `free`."""
    both = (a.keys() & b.keys()) - set(free)
    return {key: a[key] for key in both}, {key: b[key] for key in both}


# Programs of their own, because the normaliser takes seconds to compile: once for every shape of a batch, however
# many networks follow.


@functools.partial(jax.jit, static_argnames=("method", "settings"))
def normalize(
    flux: Float[Array, "stars pixels"],
    valid: Bool[Array, "stars pixels"],
    *,
    method: Normalizer,
    settings: Any,
) -> tuple[Float[Array, "stars pixels"], Bool[Array, " stars"]]:
    """Spectra without their continuum, and where the normaliser raised a flag."""

    def run(flux: Array, valid: Array) -> tuple[Array, Array]:
        out = method.normalize_batch(flux, valid, settings=settings)
        return out.flux, out.flags != 0

    return sharding.by_rows(run)(flux, valid)


@functools.partial(jax.jit, static_argnames=("model",))
def member_pmf(
    variables: Any, flux: Float[Array, "stars pixels"], valid: Bool[Array, "stars pixels"], *, model: ResNet1D
) -> Float[Array, "labels stars bins"]:
    """PMFs of one network for normalised spectra; padded bins are 0."""
    return jax.nn.softmax(model.apply(variables, flux, valid, train=False, running=True).logits)


@functools.partial(jax.jit, static_argnames=("model",))
def member_features(
    variables: Any, flux: Float[Array, "stars pixels"], valid: Bool[Array, "stars pixels"], *, model: ResNet1D
) -> Float[Array, "stars features"]:
    """What the heads of one network see of normalised spectra: its pooled features."""
    _, kept = model.apply(variables, flux, valid, train=False, running=True, mutable=["intermediates"])
    return kept["intermediates"]["features"][0]


@functools.partial(jax.jit, static_argnames=("model",))
def member_outputs(
    variables: Any, flux: Float[Array, "stars pixels"], valid: Bool[Array, "stars pixels"], *, model: ResNet1D
) -> tuple[Float[Array, "labels stars bins"], Float[Array, "labels stars features"]]:
    """As `member_pmf`, and the embeddings that the same run gives."""
    found = model.apply(variables, flux, valid, train=False, running=True)
    return jax.nn.softmax(found.logits), found.embedding


@jax.jit
def mean_pmf(pmf: Float[Array, "members labels stars bins"]) -> Float[Array, "labels stars bins"]:
    """The mean over networks."""
    return jnp.mean(pmf, axis=0)
