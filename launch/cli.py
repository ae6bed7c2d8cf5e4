"""Shared by the launch scripts: flags, logging and readable errors."""

from __future__ import annotations

import errno
import functools
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import ml_collections
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from remap.config import ConfigError, apply_overrides, read_overrides
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
