"""Shared by the command `remap` and the launch scripts: flags, logging and readable errors."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from remap import io, sharding, surveys
from remap.config import ConfigError, apply_overrides, read_overrides
from remap.predict.predictor import Predictor
from remap.predict.release import load, networks
from remap.preprocess.observed import Observed
from remap.spectra import SpectrumError
from remap.train.loop import DivergedError, Preempted

logger = logging.getLogger("remap")

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of this experiment; made if it does not exist.")
CACHE = flags.DEFINE_string(
    "compilation_cache", "~/.cache/deep-remap", "Folder that keeps compiled programs between runs; '' = none."
)
TRACEBACK = flags.DEFINE_bool("traceback", False, "Show where an error was raised, not its message alone.")
DEVICES = flags.DEFINE_integer(
    "devices",
    0,
    "Devices that a CPU is taken for, each with a part of every batch; 0 = one. GPUs are all used.",
)
DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    False,
    "One of several processes, as the cluster (Slurm, Open MPI, Kubernetes) has started them.",
)
COORDINATOR = flags.DEFINE_string(
    "coordinator",
    "",
    "The same by hand: HOST:PORT of the first process, with --process_count and --process_index.",
)
PROCESS_COUNT = flags.DEFINE_integer("process_count", 0, "How many processes there are.")
PROCESS_INDEX = flags.DEFINE_integer("process_index", -1, "Which of them this is, from 0.")
TRANSFER_GUARD = flags.DEFINE_enum(
    "transfer_guard", "allow", ["allow", "log", "disallow"],
    "What JAX does in a step of training about transfers to and from a device that nobody asked for.",
)  # fmt: skip
PROFILE = flags.DEFINE_string("profile", "", "Folder for a profile of the run, for TensorBoard or Perfetto.")

ARRAYS = ("*.npz", "*.h5", "*.hdf5", "*.parquet")  # files of the format "arrays" in a folder
# What the operating system says of a place that a user named, and can mend.
PLACES = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO),
    *(errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG),
)


class ConfigFlag:
    """The config of a launch script: its file, then the files of `--override`, then `--config.field=value`."""

    def __init__(self, default: str | None, values: flags.FlagValues) -> None:
        self._values = values
        self._config = config_flags.DEFINE_config_file(
            "config", default, "Settings, for example configs/miles.py.", flag_values=values
        )
        self._files = flags.DEFINE_multi_string(
            "override",
            [],
            'JSON file of settings that differ from the config\'s, {"section.field": value}, for example '
            "cross_validate/chosen.json; may be given again, and --config.section.field=value has the last word.",
            flag_values=values,
        )

    @functools.cached_property
    def value(self) -> ml_collections.ConfigDict:
        """The config that the flags give."""
        config = self._config.value
        for path in self._files.value:
            config, _ = apply_overrides(config, read_overrides(path), path)
        if self._files.value:
            config.update_from_flattened_dict(config_flags.get_override_values(self._values["config"]))
        return config


def define_config(*, default: str | None = None, values: flags.FlagValues = flags.FLAGS) -> ConfigFlag:
    """The flags `--config=configs/NAME.py`, `--config.field=value` and `--override=FILE`."""
    return ConfigFlag(default, values)


class SpectraFlags:
    """The flags that say which spectra are read, and how: `--spectra`, `--survey`, `--source`, ..."""

    def __init__(self, values: flags.FlagValues) -> None:
        own = {"flag_values": values}
        self.paths = flags.DEFINE_list("spectra", None, "Files or folders, separated by commas.", **own)
        self.survey = flags.DEFINE_string(
            "survey", "", "Whose files they are; docs/surveys.md lists the names.", **own
        )
        self._source = flags.DEFINE_string(
            "source", "", "JSON that overrides how spectra are read, e.g. '{\"hdu\": 1}'.", **own
        )
        self._resolution = flags.DEFINE_float(
            "resolution", 0.0, "λ/FWHM of the spectra, where it is known better; 0 = not given.", **own
        )
        self._velocities = flags.DEFINE_string(
            "velocities",
            "",
            "rest, file (what the file says, else measured), measure, or a table with a column of velocities.",
            **own,
        )
        self._velocity_column = flags.DEFINE_string(
            "velocity_column", "rv", "Column of that table, km/s.", **own
        )
        flags.DEFINE_alias("velocity-column", "velocity_column", **own)

    def observe(self, predictor: Predictor) -> tuple[Observed, int]:
        """The spectra that the flags name, as the networks take them, and of how many files they are."""
        files, how = self.files(predictor)
        return predictor.observe_files(files, **how), len(files)

    def files(self, predictor: Predictor) -> tuple[list[Path], dict[str, Any]]:
        """The files that the flags name, and the arguments of `Predictor.observe_files` that say how to read them."""
        survey = surveys.get(self.survey.value) if self.survey.value else None
        own: Mapping[str, Any] = predictor.config["survey"]
        patterns = survey.patterns if survey else own["patterns"]
        source = self._read()
        if not survey and source.get("format", own["source"]["format"]) == own["source"]["format"]:
            source = dict(own["source"]) | source  # of another format it is a declaration of its own
        if source.get("format") == "arrays":
            patterns = ARRAYS
        files = [f for path in self.paths.value for f in io.list_files(path, patterns)]
        velocities = self._velocities.value or None
        if velocities not in (None, "rest", "file", "measure"):
            table = io.read_velocities(velocities, column=self._velocity_column.value)
            known = np.array(
                [*table.values(), np.nan]
            )  # -1, the last, is a file that the table does not know
            velocities = known[io.match_rows(list(table), files, where=self._velocities.value)]
        return files, {"survey": survey, "source": source, "velocities": velocities}

    def _read(self) -> dict[str, Any]:
        """What the flags say about how spectra are read."""
        source = json_object(self._source.value, "--source")
        if self._resolution.value < 0:
            raise ConfigError(f"--resolution: expected a positive number, found {self._resolution.value}")
        if self._resolution.value:
            source["line_spread"] = {"resolution": self._resolution.value}
        return source


def define_spectra(*, values: flags.FlagValues = flags.FLAGS) -> SpectraFlags:
    """The flags that say which spectra are read, and how."""
    return SpectraFlags(values)


class NetworkFlag:
    """The flag `--network`, in place of `--workdir` where networks alone are asked for."""

    def __init__(self, values: flags.FlagValues) -> None:
        self._name = flags.DEFINE_string(
            "network",
            "",
            "Network that comes with the package, or the folder of a released one, in place of --workdir.",
            flag_values=values,
        )

    @property
    def given(self) -> bool:
        """Whether a network is asked for, by name or as a working folder."""
        return bool(self._name.value or WORKDIR.value)

    @property
    def workdir(self) -> Path | None:
        """The working folder, where that is what is asked for."""
        return Path(WORKDIR.value) if WORKDIR.value else None

    def load(self, **options: Any) -> Predictor:
        """The networks that the flags name; see `remap.predict.release.load`.

        Raises:
          ConfigError: neither flag or both are given.
        """
        if bool(self._name.value) == bool(WORKDIR.value):
            found = "both" if WORKDIR.value else "neither"
            raise ConfigError(
                f"expected --network=NAME ({', '.join(networks()) or 'none comes with the package'}) or "
                f"--workdir=DIR, found {found}"
            )
        if self._name.value and options.get("stage") == "finetune":
            options.pop("stage")
        return load(self._name.value or WORKDIR.value, **options)


def define_network(*, values: flags.FlagValues = flags.FLAGS) -> NetworkFlag:
    """The flag `--network`."""
    return NetworkFlag(values)


class FoldsFlag:
    """The flag `--folds` of a training."""

    def __init__(self, values: flags.FlagValues) -> None:
        self._text = flags.DEFINE_list(
            "folds", None, "Folds to train, as 0,1; all of split.run if not given.", flag_values=values
        )

    @property
    def value(self) -> tuple[int, ...] | None:
        """Numbers of the folds; None = all.

        Raises:
          ConfigError: one of them is no whole number.
        """
        if self._text.value is None:
            return None
        try:
            return tuple(int(text) for text in self._text.value)
        except ValueError:
            raise ConfigError(f"--folds: expected whole numbers, found {self._text.value}") from None


def define_folds(*, values: flags.FlagValues = flags.FLAGS) -> FoldsFlag:
    """The flag that says which folds a training is about."""
    return FoldsFlag(values)


def define_arms(*, values: flags.FlagValues = flags.FLAGS) -> flags.FlagHolder:
    """The flag that says which arms a training is about; None = all."""
    return flags.DEFINE_list(
        "arms",
        None,
        "Arms to train, separated by commas; all if not given. Several runs, one per arm, may share --workdir.",
        flag_values=values,
    )


def json_object(text: str, flag: str) -> dict[str, Any]:
    """A flag's JSON object; {} where it is not given."""
    try:
        found = json.loads(text or "{}")
    except ValueError as error:
        raise ConfigError(f"{flag}: expected JSON, found {text!r} ({error})") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{flag}: expected a JSON object, found {text!r}")
    return found


def run_with_arguments(main: Callable[[list[str]], None]) -> None:
    """As `run`, for a script that takes names of files on its command line."""
    _run(main)


def run(main: Callable[[], None], *, required: tuple[str, ...], processes: bool = False) -> None:
    """Parses the flags, calls `main`, and turns a user's mistake into one line instead of a traceback.

    A mistake is what remap says is one: a setting, a file or a spectrum that cannot be used. Any other error, one of
    JAX or NumPy above all, is a fault of the program and keeps its traceback.

    Args:
      main: what the script does.
      required: flags that must be given.
      processes: the script may be one of several processes.

    Exit status: 0 done, 1 a mistake in the input, 75 (EX_TEMPFAIL) stopped by SIGTERM or Ctrl-C with the state
    saved, 130 stopped by Ctrl-C where there was no state to save.
    """
    flags.mark_flags_as_required(required)

    def without(arguments: list[str]) -> None:
        if arguments:
            raise app.UsageError(f"unknown arguments: {arguments}")
        main()

    _run(without, processes=processes)


def _run(main: Callable[[list[str]], None], *, processes: bool = False) -> None:
    def wrapped(argv: list[str]) -> None:
        _show_progress()
        if CACHE.value:
            jax.config.update("jax_compilation_cache_dir", str(Path(CACHE.value).expanduser()))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
        try:
            with _devices(processes=processes):
                main(argv[1:])
        except Preempted as stop:
            logger.warning("%s", stop)
            sys.exit(75)
        except KeyboardInterrupt:
            if TRACEBACK.value:
                raise
            logger.warning("stopped by Ctrl-C; the same command starts this step again")
            sys.exit(130)
        except (ConfigError, SpectrumError, FileNotFoundError, FileExistsError, DivergedError) as error:
            if TRACEBACK.value:
                raise
            sys.exit(f"error: {error}")
        except OSError as error:
            if TRACEBACK.value or error.errno not in PLACES:
                raise
            sys.exit(f"error: {error.filename or 'a file'}: {error.strerror}")

    app.run(wrapped, flags_parser=_parse)


@contextlib.contextmanager
def _devices(*, processes: bool) -> Iterator[None]:
    """Devices, processes, the guard and the profile that the flags ask for."""
    one = (
        not DISTRIBUTED.value
        and not COORDINATOR.value
        and (PROCESS_COUNT.value, PROCESS_INDEX.value) == (0, -1)
    )
    if not one and not processes:
        raise ConfigError(
            "this script runs in one process: leave out --distributed, --coordinator, --process_count and "
            "--process_index (pretrain, align, finetune and predict may have several)"
        )
    sharding.start(
        devices=DEVICES.value,
        distributed=DISTRIBUTED.value,
        coordinator=COORDINATOR.value,
        process_count=PROCESS_COUNT.value,
        process_index=PROCESS_INDEX.value,
    )
    if not sharding.writes():
        logger.setLevel(logging.WARNING)  # the first process tells what all do
    with contextlib.ExitStack() as stack:
        stack.enter_context(sharding.guard_transfers(TRANSFER_GUARD.value))
        if PROFILE.value:
            stack.enter_context(jax.profiler.trace(PROFILE.value))
        yield


def _parse(argv: list[str]) -> list[str]:
    """absl's own parser, with a config's mistakes (unknown fields, wrong types) told in one line."""
    try:
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def _show_progress() -> None:
    """Sends the package's own messages to standard error; those of the libraries below stay at warnings."""
    absl_logging.set_verbosity(absl_logging.WARNING)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
