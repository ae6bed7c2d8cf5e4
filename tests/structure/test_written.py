"""Files are written by `remap.writing` alone: whole or not at all, on the disk before they take their place."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OWN = re.compile(
    r"os\.replace\(|os\.rename\(|\.rename\(|\.replace\(path\)|tempfile|mkstemp|\.write_text\(|\.write_bytes\(|"
    r"format=\"ascii\.ecsv\", overwrite|\.savefig\(|open\(\"w"
)
# Where it is so for a reason.
KNOWN = {
    "remap.writing": "it is the one",
    "remap.io.download": "a part of a file is kept, to go on with; brought to the disk before it is moved",
    "remap.stages.fetch_library": "puts a wrong file aside",
    "remap.predict.shards": "a manifest that two processes make at once: the first one counts",
    "remap.store.rows": "files that are gone when the preparation of a survey ends",
    "remap.report.figure": "draws into what remap.writing has opened",
    "remap.synth.survey": "a mock survey, of files that are made again",
    "remap.synth.mock": "the same",
}


def test_nobody_else_writes_in_a_way_of_their_own():
    found = set()
    for path in (ROOT / "remap").rglob("*.py"):
        code = re.sub(r'""".*?"""', "", path.read_text(), flags=re.DOTALL)
        if OWN.search(code):
            found.add(".".join(path.relative_to(ROOT).with_suffix("").parts))
    assert found == set(KNOWN)
