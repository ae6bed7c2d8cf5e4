"""Writes trained networks as one file that runs without this package, by JAX and NumPy alone (docs/export.md).

    python -m launch.export --network=NAME --output=FILE.npz
    python -m launch.export --workdir=DIR --output=FILE.npz

With `--onnx=FILE.onnx` the networks of each arm, without continuum and calibration, are written as FILE_ARM.onnx.
"""

from absl import flags

from launch import cli
from remap.predict.export import PLATFORMS, export
from remap.predict.onnx_files import export_onnx

NETWORK = cli.define_network()
OUTPUT = flags.DEFINE_string("output", None, "File to write, NAME.npz.")
PLATFORM = flags.DEFINE_list("platforms", list(PLATFORMS), "That it is to run on: cpu, cuda, rocm, tpu.")
CALIBRATED = flags.DEFINE_bool("calibrated", True, "With the calibration of the networks, if there is one.")
ONNX = flags.DEFINE_string(
    "onnx", "", "Write the networks alone as ONNX, too: NAME.onnx gives NAME_ARM.onnx."
)
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace an existing file.")


def main() -> None:
    predictor = NETWORK.load(calibrated=CALIBRATED.value)
    if predictor.expert is not None:
        cli.logger.warning("the expert stays behind: the file has the networks alone, calibrated as such")
    size = export(predictor, OUTPUT.value, platforms=PLATFORM.value, overwrite=OVERWRITE.value)
    cli.logger.info("%s: %.2f MB", OUTPUT.value, size / 1e6)
    if ONNX.value:
        for file in export_onnx(predictor, ONNX.value, overwrite=OVERWRITE.value).values():
            cli.logger.info("%s", file)


if __name__ == "__main__":
    cli.run(main, required=("output",))
