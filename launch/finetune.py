"""Fine-tunes the pre-trained networks on the survey's labelled stars, fold by fold.

python -m launch.finetune --config=configs/miles.py --workdir=DIR [--arms=A] [--folds=0,1] [--config.field=value ...]
"""

from launch import cli
from remap.stages.finetune import finetune

CONFIG = cli.define_config()
ARMS = cli.define_arms()
FOLDS = cli.define_folds()


def main() -> None:
    finetune(CONFIG.value, cli.WORKDIR.value, arms=ARMS.value, folds=FOLDS.value)


if __name__ == "__main__":
    cli.run(main, required=("config", "workdir"), processes=True)
