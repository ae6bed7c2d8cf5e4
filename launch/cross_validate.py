"""Compares settings (widths and depth of the network, by default) by cross-validation and writes the chosen one.

    python -m launch.cross_validate --config=configs/miles.py --workdir=DIR [--config.cross_validate.field=value ...]

The other scripts take the choice with `--override=DIR/cross_validate/STAGE/chosen.json`.
"""

from launch import cli
from remap.studies.cross_validate import cross_validate

CONFIG = cli.define_config()


def main() -> None:
    cross_validate(CONFIG.value, cli.WORKDIR.value)
    print(f"--override={cli.WORKDIR.value}/cross_validate/{CONFIG.value.cross_validate.stage}/chosen.json")


if __name__ == "__main__":
    cli.run(main, required=("config", "workdir"))
