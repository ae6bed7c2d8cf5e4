"""Brings library and survey onto the arms' grids.

python -m launch.preprocess --config=configs/miles.py --workdir=DIR [--config.field=value ...]
"""

from launch import cli
from remap.stages.preprocess import preprocess

CONFIG = cli.define_config()


def main() -> None:
    preprocess(CONFIG.value, cli.WORKDIR.value)


if __name__ == "__main__":
    cli.run(main, required=("config", "workdir"))
