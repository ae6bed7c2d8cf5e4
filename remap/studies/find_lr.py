"""The learning-rate range test (paper §4.6; Smith 2017, arXiv:1506.01186): how high may the rate go?"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from remap.config import ConfigError, record
from remap.report.plots import learning_rates
from remap.stages.pretrain import Pretraining, pretraining
from remap.store.atomic import check_writable, write_json
from remap.store.workdir import check_prepared
from remap.train.loop import draw_batch, run_keys, train_step
from remap.train.objectives import NetworkObjective
from remap.train.optim import make_optimizer
from remap.train.state import init_state

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class RangeSettings:
    """The range test (config section `find_lr`).

    Attributes:
      low, high: the rate rises exponentially between them, step by step.
      steps: how many.
      smoothing: weight of the past in the running mean of the loss, corrected for its start.
      diverged: the test ends when the running mean exceeds this multiple of its least value.
      margin: the suggested upper limit is this fraction of the rate at the least running mean.
      span: upper over lower limit.
    """

    low: float = 1e-6
    high: float = 1.0
    steps: int = 400
    smoothing: float = 0.95
    diverged: float = 2.0
    margin: float = 0.5
    span: float = 100.0

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high or self.steps < 2:
            raise ConfigError(
                f"find_lr: expected 0 < low < high and at least 2 steps, found {self.low}, {self.high}, {self.steps}"
            )
        if not 0 <= self.smoothing < 1 or self.diverged <= 1 or not 0 < self.margin <= 1 or self.span < 1:
            raise ConfigError(
                "find_lr: expected smoothing in [0, 1), diverged > 1, margin in (0, 1] and span >= 1, found "
                f"{self.smoothing}, {self.diverged}, {self.margin}, {self.span}"
            )


@dataclasses.dataclass(frozen=True)
class RangeTest:
    """What the test found; `rates`, `losses` and `smooth` have one entry per step that was made."""

    rates: list[float]
    losses: list[float]
    smooth: list[float]
    rate_high: float
    rate_low: float
    diverged: bool


def range_schedule(settings: RangeSettings) -> optax.Schedule:
    """The rate of step 0 to steps - 1: low · (high / low)^(step / (steps - 1))."""
    ratio = (settings.high / settings.low) ** (1 / (settings.steps - 1))
    return optax.exponential_decay(settings.low, 1, ratio)


def range_test(start: Pretraining, settings: RangeSettings) -> RangeTest:
    """Trains a fresh network with a rising rate until the loss diverges or the rates are used up."""
    schedule = range_schedule(settings)
    objective = NetworkObjective(start.arm.model, start.arm.loss)
    optimizer = make_optimizer(((".*", 1.0),), schedule, clip_norm=start.settings.clip_norm)
    first = jax.tree.map(jnp.array, start.variables)
    state = init_state(first["params"], first["batch_stats"], optimizer)
    keys = run_keys(start.fit_key)
    losses: list[float] = []
    smooth: list[float] = []
    running, diverged = 0.0, False
    for i in range(settings.steps):
        batch = draw_batch(start.source, keys.batches, jnp.asarray(i, jnp.int32))
        state, terms = train_step(state, batch, keys.dropout, objective=objective, optimizer=optimizer)
        value = float(terms.total)
        if not np.isfinite(value):
            diverged = True
            break
        running = settings.smoothing * running + (1 - settings.smoothing) * value
        losses.append(value)
        smooth.append(running / (1 - settings.smoothing ** (i + 1)))
        if smooth[-1] > settings.diverged * min(smooth):
            diverged = True
            break
    if not losses:
        raise ConfigError(f"find_lr: the loss is not finite at the first step, with a rate of {settings.low}")
    rates = [float(schedule(i)) for i in range(len(losses))]
    high = settings.margin * rates[int(np.argmin(smooth))]
    return RangeTest(rates, losses, smooth, high, high / settings.span, diverged)


def find_lr(config: ml_collections.ConfigDict, workdir: str | Path) -> dict[str, RangeTest]:
    """The range test of every arm; writes find_lr/ARM.json and, where matplotlib is there, find_lr/ARM.png."""
    workdir = Path(workdir)
    preprocessing = check_prepared(config, workdir)
    settings = record(RangeSettings, config.find_lr, "find_lr")
    check_writable(workdir / "find_lr" / f"{next(iter(preprocessing.arms))}.json")
    found = {}
    for arm in preprocessing.arms:
        start = pretraining(config, workdir, preprocessing, arm)
        test = range_test(start, settings)
        found[arm] = test
        folder = workdir / "find_lr"
        write_json(folder / f"{arm}.json", dataclasses.asdict(test))
        if not test.diverged:
            logger.warning(
                "find_lr %s: the loss never diverged up to a rate of %g: raise find_lr.high",
                arm,
                test.rates[-1],
            )
        logger.info("find_lr %s: rate_high %.2e, rate_low %.2e", arm, test.rate_high, test.rate_low)
        try:
            learning_rates(folder / f"{arm}.png", test.rates, test.losses, test.smooth, test.rate_high)
        except ImportError as error:
            logger.warning("find_lr: no plot: %s", error)
    return found
