"""Makes a library of synthetic spectra; see configs/synthesize.py for its grid.

python -m launch.synthesize --output=library.npz [--config=configs/synthesize.py] [--config.library.field=value ...]
"""

from absl import flags

from launch import cli
from remap.synth.library import check_output, make_library, write_library

CONFIG = cli.define_config(default="configs/synthesize.py")
OUTPUT = flags.DEFINE_string("output", None, "Library to write: NAME.npz.")


def main() -> None:
    check_output(OUTPUT.value)
    library = make_library(**CONFIG.value.library)
    write_library(OUTPUT.value, library)
    count, pixels = library["flux"].shape
    cli.logger.info("%s: %d spectra of %d pixels", OUTPUT.value, count, pixels)


if __name__ == "__main__":
    cli.run(main, required=("output",))
