"""Trains one network per arm on the library.

python -m launch.pretrain --config=configs/miles.py --workdir=DIR [--arms=A] [--config.field=value ...]
"""

from launch import cli
from remap.stages.pretrain import pretrain

CONFIG = cli.define_config()
ARMS = cli.define_arms()


def main() -> None:
    pretrain(CONFIG.value, cli.WORKDIR.value, arms=ARMS.value)


if __name__ == "__main__":
    cli.run(main, required=("config", "workdir"), processes=True)
