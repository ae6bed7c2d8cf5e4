"""Shared by the launch scripts: flags, logging and readable errors."""

from __future__ import annotations

import errno
import functools
import json
import logging
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from remap import io, surveys
from remap.config import ConfigError, apply_overrides, read_overrides
from remap.predict.predictor import Predictor
from remap.preprocess.observe import Observed
from remap.spectra import SpectrumError
from remap.train.loop import DivergedError, Preempted

logger = logging.getLogger("remap")

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of this experiment; made if it does not exist.")
CACHE = flags.DEFINE_string(
    "compilation_cache", "~/.cache/deep-remap", "Folder that keeps compiled programs between runs; '' = none."
)
TRACEBACK = flags.DEFINE_bool("traceback", False, "Show where an error was raised, not its message alone.")

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
        files = [f for path in self.paths.value for f in io.list_files(path, patterns)]
        source = ({} if survey else dict(own["source"])) | self._read()
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


def run(main: Callable[[], None], *, required: tuple[str, ...]) -> None:
    """Parses the flags, calls `main`, and turns a user's mistake into one line instead of a traceback.

    A mistake is what remap says is one: a setting, a file or a spectrum that cannot be used. Any other error, one of
    JAX or NumPy above all, is a fault of the program and keeps its traceback.

    Exit status: 0 done, 1 a mistake in the input, 75 (EX_TEMPFAIL) stopped by SIGTERM or Ctrl-C with the state
    saved, 130 stopped by Ctrl-C where there was no state to save.
    """
    flags.mark_flags_as_required(required)

    def without(arguments: list[str]) -> None:
        if arguments:
            raise app.UsageError(f"unknown arguments: {arguments}")
        main()

    _run(without)


def _run(main: Callable[[list[str]], None]) -> None:
    def wrapped(argv: list[str]) -> None:
        _show_progress()
        if CACHE.value:
            jax.config.update("jax_compilation_cache_dir", str(Path(CACHE.value).expanduser()))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
        try:
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
