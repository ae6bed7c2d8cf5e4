"""Fetches the part of PHOENIX-ACES HiRes that a config selects; the same command goes on where it stopped.

python -m launch.fetch_library --config=configs/marvels.py [--dry_run] [--config.fetch.field=value ...]
"""

import sys

from absl import flags

from launch import cli
from remap.stages.fetch_library import fetch_library

CONFIG = cli.define_config()
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Only say how many files and bytes there are to fetch.")


def main() -> None:
    try:
        fetch_library(CONFIG.value, dry_run=DRY_RUN.value)
    except KeyboardInterrupt:
        cli.logger.warning("fetch_library: stopped; what has come is kept, the same command goes on")
        sys.exit(130)


if __name__ == "__main__":
    cli.run(main, required=("config",))
