"""The benchmark of libraries: what its variants differ in, and its table."""

import numpy as np
import pytest

from benchmarks import bench_libraries
from benchmarks.bench_libraries import VARIANTS, config_of, markdown
from remap.config import record
from remap.preprocess.description import make_preprocessing
from remap.sampling.augment import AugmentSettings
from remap.sampling.mixture import library_weights
from remap.stages.library import LibraryFiles


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_differ_in_libraries_augmentation_and_the_start_of_the_first_arm_alone(variant):
    config = config_of(variant, 3, short=False)
    libraries, augment, hbeta = VARIANTS[variant]
    record(LibraryFiles, config.library, "library")
    assert list(library_weights(config)) == ["", "coolstars"][: len(libraries)]
    assert ("coolstars" in config.library.path) == (libraries == ("coolstars",))
    on = record(AugmentSettings, config.augment, "augment").of_library
    assert on == {k: v for k, v in augment.items() if k != "alpha_scatter"}
    other = config_of("lte", 0, short=True)
    assert (config.arms.A.start < 4861.3) == hbeta
    with other.unlocked():
        other.arms.A.start = config.arms.A.start
    assert make_preprocessing(config) == make_preprocessing(other)
    assert config.survey.labels_path == "miles/labels_consensus.ecsv"
    assert config.seed == 3


def test_table_has_means_over_seeds_and_their_spread():
    def row(bias):
        numbers = {"n": 7, "bias": bias, "median": 0.0, "robust": 1.0, "std": 2.0, "width": 3.0}
        return [
            {"group": g, "label": x} | numbers
            for g in bench_libraries.GROUPS
            for x in bench_libraries.FORMATS
        ]

    seeds = [{"variant": "lte", "seed": k, "rows": row(b)} for k, b in enumerate((100.0, 140.0))]
    text = markdown({"lte": seeds})
    assert text.count("| lte | teff | 7 | 120 ± 20 | 0 | 1 | 2 | 3 |") == len(bench_libraries.GROUPS)
    assert np.ptp([len(x.split("|")) for x in text.splitlines() if x.startswith("| lte")]) == 0
