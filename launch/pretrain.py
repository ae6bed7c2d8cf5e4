"""Trains one network per arm on the library.

python -m launch.pretrain --config=configs/miles.py --workdir=DIR [--config.field=value ...]
"""

from launch import cli
from remap.stages.pretrain import pretrain

CONFIG = cli.define_config()


def main() -> None:
    pretrain(CONFIG.value, cli.WORKDIR.value)


if __name__ == "__main__":
    cli.run(main, required=("config", "workdir"), processes=True)
