"""Range test of the learning rate: suggests the limits of pre-training.

python -m launch.find_lr --config=configs/miles.py --workdir=DIR [--config.find_lr.field=value ...]
"""

from launch import cli
from remap.studies.find_lr import find_lr

CONFIG = cli.define_config()


def main() -> None:
    found = find_lr(CONFIG.value, cli.WORKDIR.value)
    high = min(test.rate_high for test in found.values())
    low = min(test.rate_low for test in found.values())
    print(f"--config.pretrain.rate_high={high:.1e} --config.pretrain.rate_low={low:.1e}")
    print(f"Losses and plots are in {cli.WORKDIR.value}/find_lr")


if __name__ == "__main__":
    cli.run(main, required=("config", "workdir"))
