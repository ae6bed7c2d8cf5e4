"""Makes the labelled stars an expert of their own beside the fine-tuned networks.

python -m launch.expert --config=configs/miles.py --workdir=DIR
"""

from launch import cli
from remap.stages.expert import expert

CONFIG = cli.define_config()


def main() -> None:
    table = expert(CONFIG.value, cli.WORKDIR.value)
    for name in ("network", "stars", "scatter"):
        table[name].info.format = ".3f"
    print("\n".join(table.pformat(max_lines=-1, max_width=-1)))


if __name__ == "__main__":
    cli.run(main, required=("config", "workdir"))
