"""The table of scripts/faults: it tells what came of a fault, and whether that was promised."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"


@pytest.fixture(scope="module")
def faults() -> Any:
    """The script, which imports its neighbours by their names."""
    sys.path.insert(0, str(SCRIPTS))
    try:
        return importlib.import_module("faults")
    finally:
        sys.path.remove(str(SCRIPTS))


def test_the_table_tells_what_clients_get_and_what_the_server_is_then() -> None:
    done = subprocess.run(
        [sys.executable, SCRIPTS / "faults.py", "refuses connections"],
        cwd=SCRIPTS.parent,
        env={"PYTHONPATH": str(SCRIPTS.parent)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    heading, _, row, _, sums = (line.strip("| ").split(" | ") for line in done.stdout.splitlines())
    assert len(heading) == len(row)
    assert row[2:4] == ["whole, by the other", "502 `upstream_error`"]
    assert row[4].startswith("offline") and "refused" in row[4]
    assert sums[0].startswith("1 rows, 0 not as promised.")


BROKEN = {
    "another answer": {"alone": "200, as it came"},
    "another state": {"state": "offline"},
    "a page that does not say why": {"reason": "it is odd"},
    "one that does not come back": {"back": "not within 20 s"},
    "memory": {"growth_bytes": 1 << 30},
    "tokens that cannot be": {"tokens": [3, -1]},
    "bystanders": {"wrong": ["a bystander got a closed connection"]},
}


@pytest.mark.parametrize("more", BROKEN.values(), ids=BROKEN.keys())
def test_whatever_is_not_as_promised_is_named(faults: Any, more: dict[str, Any]) -> None:
    (fault,) = (each for each in faults.FAULTS if each.words == "lists its models as a web page")
    as_promised = dict(zip(("beside", "alone", "state"), fault.comes, strict=True)) | {"reason": "a web page"}
    assert faults.disagreements(fault, faults.Seen(**as_promised)) == []
    (told,) = faults.disagreements(fault, faults.Seen(**as_promised | more))
    assert fault.words in told


def test_no_two_rows_are_of_one_fault(faults: Any) -> None:
    words = [fault.words for fault in faults.FAULTS]
    assert len(words) == len(set(words))
