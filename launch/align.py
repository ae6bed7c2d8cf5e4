"""Pulls the features of library and survey together, without labels, between launch.pretrain and launch.finetune.

python -m launch.align --config=configs/miles.py --workdir=DIR --config.align.kind=mmd
"""

from launch import cli
from remap.stages.align import align

CONFIG = cli.define_config()


def main() -> None:
    align(CONFIG.value, cli.WORKDIR.value)


if __name__ == "__main__":
    cli.run(main, required=("config", "workdir"), processes=True)
