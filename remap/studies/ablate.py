"""What each piece of the method is worth (paper §6.4): the full model against variants that lack one.

Every variant is the config with a few fields changed (config section `ablate`), trained for the same seeds, and
so with the same folds. Held-out stars are compared one by one: residual, CRPS and NLL of the combined PMFs,
before calibration, which would hide what a variant does to the widths.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from astropy.table import Table

from remap.config import SECTIONS, ConfigError, Section, apply_overrides, deciding, leaves, record
from remap.pmf.metrics import crps, nll
from remap.predict.held_out import held_out
from remap.stages.align import align
from remap.stages.evaluate import EvaluateSettings
from remap.stages.finetune import finetune
from remap.stages.preprocess import preprocess
from remap.stages.pretrain import pretrain
from remap.store.atomic import check_writable, read_json, write_files, write_json, write_text
from remap.store.checkpoint import check_equal
from remap.store.inputs import check_inputs
from remap.store.stars import labelled_rows, readable_stars
from remap.store.tables import ecsv_writer
from remap.store.workdir import check_prepared, read_config, share
from remap.studies.ablate_report import compare, markdown
from remap.train.loop import DivergedError

logger = logging.getLogger(__name__)

FULL = "full"  # the name of the model that the others are compared with
PER_LABEL = "per_label"
COMPARED_BY = ("name", "seed", "label_names")  # the same in all variants


@dataclasses.dataclass(frozen=True, kw_only=True)
class AblateSettings:
    """What is compared (config section `ablate`).

    Attributes:
      seeds: of folds, networks and batches; every variant is trained for each.
      run: names of the variants to train; () = all.
      overrides: changes for all, the full model too, like those of a variant.
      resamples, level: of the bootstrap intervals.
      variants: name -> changes, {"section": {"field": value}} or {"section.field": value}; "per_label": True asks for
        one network per label.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    run: tuple[str, ...] = ()
    overrides: Section = dataclasses.field(default_factory=dict)
    resamples: int = 2000
    level: float = 0.95
    variants: Section = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ConfigError(f"ablate.seeds: expected different seeds, at least one, found {self.seeds}")
        unknown = [name for name in self.run if name not in self.variants]
        if unknown:
            raise ConfigError(
                f"ablate.run: unknown variants {unknown}; the config has {sorted(self.variants)}"
            )
        for name in self.run or self.variants:
            if name == FULL or not re.fullmatch(r"[\w-]+", name):
                raise ConfigError(
                    f"ablate.variants: {name!r} is no name for a variant; use letters, digits, _ and -"
                )


@dataclasses.dataclass(frozen=True)
class Part:
    """Networks that are trained together, and the labels that are taken from them."""

    name: str  # of its folder; "" = that of the variant
    labels: tuple[str, ...]
    config: ml_collections.ConfigDict


@dataclasses.dataclass(frozen=True)
class Variant:
    """A model to train.

    Attributes:
      name: its key in `ablate.variants`, or "full".
      changes: what differs from the full model, each as "field: value there → value here".
      parts: one, or one per label.
      same: the config has these values anyway, so that this is the full model itself.
    """

    name: str
    changes: tuple[str, ...]
    parts: tuple[Part, ...]
    same: bool


def plan(config: ml_collections.ConfigDict) -> list[Variant]:
    """The full model and the variants in `ablate.run` (all of them: in alphabetical order), as configs.

    Raises:
      ConfigError: an unknown variant, field, or type of a value (names the variant and the field), or a field
        that a variant cannot change.
    """
    section = record(AblateSettings, config.ablate, "ablate")
    # Other sections do not decide the scores: a variant that changed them would be the full model.
    fixed = [name for name in config if name not in SECTIONS["scores"] or name in COMPARED_BY]
    base, shared = apply_overrides(config, section.overrides, "ablate.overrides", fixed=fixed)
    with base.unlocked():
        base.embeddings.epochs = ()  # nobody looks at those of a variant
    labels = tuple(base.label_names)
    out = [Variant(FULL, shared, (Part("", labels, base),), False)]
    for name in section.run or section.variants:
        changes = section.variants[name].to_dict()
        per_label = changes.pop(PER_LABEL, False)
        changed, told = apply_overrides(base, changes, f"ablate.variants.{name}", fixed=fixed)
        if per_label and len(labels) > 1:
            told = ("one network per label, on its loss alone", *told)
            parts = tuple(Part(label, (label,), _one_label(changed, label)) for label in labels)
        else:
            parts = (Part("", labels, changed),)
        out.append(Variant(name, told or _named(changes), parts, not told))
    return out


def ablate(config: ml_collections.ConfigDict, workdir: str | Path) -> Table:
    """Trains and compares; a finished training is left as it is, an interrupted one is continued.

    Writes ablate/VARIANT/seed_K.json (scores per star), ablate/summary.ecsv and ablate/summary.md, the last two
    again after every seed that was trained. The data are prepared once, and a pre-training serves all variants
    that share it.

    Returns:
      One row per group, label, metric and variant (see `ablate_report.compare`).

    Raises:
      ConfigError: a variant that the config cannot make.
      ValueError: results in the folder that were made by other settings.
    """
    workdir = Path(workdir)
    settings = record(AblateSettings, config.ablate, "ablate")
    variants = plan(config)
    base = variants[0].parts[0].config
    report = record(EvaluateSettings, base.evaluate, "evaluate")
    seeds = settings.seeds
    check_writable(workdir / "ablate" / "summary.ecsv")
    if (workdir / "data" / "preprocessing.json").exists():
        check_prepared(base, workdir)
    else:
        preprocess(base, workdir)
    stars = readable_stars(workdir)
    trained = [v for v in variants if not v.same]
    logger.info(
        "ablate: %d models (%s), %d seeds", len(trained), ", ".join(v.name for v in trained), len(seeds)
    )
    results: dict[str, list[dict]] = {v.name: [] for v in trained}
    pretrained: dict[str, Path] = {}
    for i, seed in enumerate(seeds):
        known = all((workdir / "ablate" / v.name / f"seed_{seed}.json").exists() for v in trained)
        for variant in trained:
            results[variant.name].append(_scores_of(variant, seed, base, workdir, pretrained))
        if known and i + 1 < len(seeds):
            continue
        table = compare(
            results,
            stars,
            labels=tuple(base.label_names),
            groups=report.groups,
            resamples=settings.resamples,
            level=settings.level,
        )
        table.meta |= {"seeds": list(seeds[: i + 1]), "changes": {v.name: list(v.changes) for v in variants}}
        write_files({workdir / "ablate" / "summary.ecsv": ecsv_writer(table)})
        text = markdown(
            table,
            {v.name: (v.changes, v.same) for v in variants},
            {v: [r["diverged"] for r in found] for v, found in results.items()},
            units={label: base.labels[label].unit for label in base.label_names},
            seeds=seeds[: i + 1],
            level=settings.level,
        )
        write_text(workdir / "ablate" / "summary.md", text)
        logger.info("ablate: %d of %d seeds compared", i + 1, len(seeds))
    return table


def _scores_of(
    variant: Variant,
    seed: int,
    base: ml_collections.ConfigDict,
    workdir: Path,
    pretrained: dict[str, Path],
) -> dict[str, Any]:
    """The scores of one variant and seed: read, or made. `pretrained` collects who has which pre-training."""
    path = workdir / "ablate" / variant.name / f"seed_{seed}.json"
    parts = [dataclasses.replace(part, config=_with_seed(part.config, seed)) for part in variant.parts]
    settings = {part.name or "all": deciding(part.config, "scores") for part in parts}
    owners = {}
    for part in parts:
        key = json.dumps(deciding(part.config, "pretrain", also=SECTIONS["data"]), sort_keys=True)
        owners[part.name] = pretrained.setdefault(key, path.with_suffix("") / part.name)
    if path.exists():
        found = read_json(path, "delete it to train this variant again")
        check_equal(found["settings"], settings, f"{path}: made with other settings")
        for kept in sorted(path.with_suffix("").glob("**/finetune/**/inputs.json")):
            folder = next(above for above in kept.parents if above.name == "finetune").parent
            check_inputs(kept.parent, folder)
        return found
    result: dict[str, Any] = {"settings": settings, "diverged": "", "file": [], "labels": {}}
    for part in parts:
        folder = path.with_suffix("") / part.name
        logger.info("ablate: %s, seed %d%s", variant.name, seed, part.name and f", {part.name} alone")
        share(folder, "data", _data_folder(variant.name, part.config, base, workdir))
        if owners[part.name] != folder:
            share(folder, "pretrain", owners[part.name])
        try:
            pretrain(part.config, folder)
            align(part.config, folder)
            finetune(part.config, folder)
        except DivergedError as error:  # a finding about this variant, with which the others go on
            if variant.name == FULL:
                raise
            logger.warning("ablate: %s, seed %d: %s", variant.name, seed, error)
            result |= {"diverged": str(error), "file": [], "labels": {}}
            break
        result["file"] = [str(file) for file in readable_stars(folder)["file"]]
        result["labels"] |= score(part.config, folder, part.labels)
    write_json(path, result)
    jax.clear_caches()  # compiled programs of dozens of trainings would fill the memory
    return result


def score(
    config: ml_collections.ConfigDict, workdir: Path, labels: Sequence[str]
) -> dict[str, dict[str, list[float]]]:
    """Per label the residual (median of the PMF minus known label), CRPS and NLL of every readable spectrum.

    Args:
      workdir: a folder in which the stages have run.

    Returns:
      label -> {"residual", "crps", "nll"} -> [S], in the order of `stars.readable_stars`; NaN for spectra
      without that label, without a PMF, or not predicted by networks that never saw their star.
    """
    stars = readable_stars(workdir)
    rows = labelled_rows(workdir, stars)
    held, known = held_out(config, workdir, stars, "finetune", calibrated=False, rows=rows), stars[rows]
    found, out = held.catalogue(known), {}
    for label in labels:
        truth = np.where(held.tested, np.asarray(known[label], float), np.nan)
        pmf, edges = found.pmfs[label], found.edges[label]
        scores = {
            "residual": np.asarray(found.table[label], float) - truth,
            "crps": crps(pmf, edges, truth),
            "nll": nll(pmf, edges, truth),
        }
        out[label] = {name: _spread(values, rows, len(stars)) for name, values in scores.items()}
    return out


def _spread(values: np.ndarray, rows: np.ndarray, count: int) -> list[float]:
    """Values of some rows of so many, NaN in the others."""
    out = np.full(count, np.nan)
    out[rows] = values
    return out.tolist()


def _data_folder(
    name: str, config: ml_collections.ConfigDict, base: ml_collections.ConfigDict, workdir: Path
) -> Path:
    """The folder with the prepared data of a variant, which are made here if they are not those of the full one."""
    own = deciding(config, "data")
    if own == deciding(base, "data"):
        return workdir
    folder = workdir / "ablate" / name
    if (folder / "data" / "preprocessing.json").exists():
        check_equal(
            deciding(read_config(folder), "data"), own, f"{folder / 'data'}: prepared with other settings"
        )
    else:
        preprocess(config, folder)
    return folder


def _with_seed(config: ml_collections.ConfigDict, seed: int) -> ml_collections.ConfigDict:
    out = config.copy_and_resolve_references()
    out.seed = seed
    return out


def _one_label(config: ml_collections.ConfigDict, label: str) -> ml_collections.ConfigDict:
    """The config with the loss of one label alone: heads of the others get no gradient and give none."""
    out = config.copy_and_resolve_references()
    out.loss.label_weights = tuple(float(name == label) for name in config.label_names)
    return out


def _named(changes: Section) -> tuple[str, ...]:
    """The fields that `changes` names with the value that the config has anyway."""
    return tuple(f"{'.'.join(path)}: {value}" for path, value in leaves(changes))
