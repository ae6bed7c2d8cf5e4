"""Widens the fine-tuned networks' PMFs as their validation stars ask for.

python -m launch.calibrate --config=configs/miles.py --workdir=DIR
"""

from launch import cli
from remap.stages.calibrate import calibrate

CONFIG = cli.define_config()


def main() -> None:
    table = calibrate(CONFIG.value, cli.WORKDIR.value)
    for name in ("power", "outliers"):
        table[name].info.format = ".3f"
    print("\n".join(table.pformat(max_lines=-1, max_width=-1)))


if __name__ == "__main__":
    cli.run(main, required=("config", "workdir"))
