"""Reports bias, scatter and coverage for the survey's labelled stars, with plots.

python -m launch.evaluate --config=configs/miles.py --workdir=DIR
"""

from launch import cli
from remap.stages.evaluate import brief, evaluate

CONFIG = cli.define_config()


def main() -> None:
    table = evaluate(CONFIG.value, cli.WORKDIR.value)
    print(brief(table))
    print(f"Tables, catalogues and plots are in {cli.WORKDIR.value}/evaluate")


if __name__ == "__main__":
    cli.run(main, required=("config", "workdir"))
