"""What launch scripts share, under a short name: flags, logging and readable errors of `remap.command.flags`."""

from remap.command.flags import (
    CACHE,
    TRACEBACK,
    WORKDIR,
    ConfigFlag,
    NetworkFlag,
    SpectraFlags,
    define_arms,
    define_config,
    define_folds,
    define_network,
    define_spectra,
    json_object,
    logger,
    run,
    run_with_arguments,
)

__all__ = [
    "CACHE",
    "TRACEBACK",
    "WORKDIR",
    "ConfigFlag",
    "NetworkFlag",
    "SpectraFlags",
    "define_arms",
    "define_config",
    "define_folds",
    "define_network",
    "define_spectra",
    "json_object",
    "logger",
    "run",
    "run_with_arguments",
]
