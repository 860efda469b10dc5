"""scripts/fuzz finds a fault that is there to be found, keeps it, and finds it again until it is mended."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.guard import HANG_S
from tests.tools import package

ROOT = Path(__file__).resolve().parents[2]

PLANTED = """
import sys
from pathlib import Path

sys.path.insert(0, {scripts!r})
import fuzz
from tests.fuzz.target import Target

folder = Path({folder!r})
fuzz.BUILD, fuzz.CORPUS = folder / "build", folder / "corpus"
fuzz.CORPUS.mkdir(exist_ok=True)

def planted(data: bytes) -> None:
    assert not ({broken} and data.startswith(b"the fault")), "the planted fault"

run = fuzz.Run(Target("planted", planted, lambda: [b"a seed"], (b"the fault",)), {seconds})
fuzz.run([run], 1)
print([path.read_bytes().startswith(b"the fault") for path in run.finds])
if {broken}:
    assert b"the planted fault" in (run.folder / "log").read_bytes()
"""


def fuzz(folder: Path, *, broken: bool, seconds: int) -> str:
    """Fuzz a target in a process of its own; gives what was said of its finds."""
    script = PLANTED.format(scripts=str(ROOT / "scripts"), folder=str(folder), broken=broken, seconds=seconds)
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=3 * HANG_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.timeout(10 * HANG_S)  # each process takes a while to begin
def test_what_is_found_is_kept_and_tried_again_until_it_is_mended(tmp_path: Path) -> None:
    package("atheris")
    assert fuzz(tmp_path, broken=True, seconds=0) == "[True]"
    assert fuzz(tmp_path, broken=True, seconds=20) == "[True]"
    assert fuzz(tmp_path, broken=False, seconds=1) == "[]"
