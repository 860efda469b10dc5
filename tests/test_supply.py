"""requirements.lock holds all that setup.cfg asks for, by hash; scripts/audit says what it could not ask."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from configparser import ConfigParser
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.guard import HANG_S

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"


def asked_for() -> list[Requirement]:
    """What setup.cfg has the gateway install."""
    parser = ConfigParser()
    parser.read(ROOT / "setup.cfg")
    asked = parser["options"]["install_requires"] + parser["options.extras_require"]["redis"]
    return [Requirement(line) for line in asked.splitlines() if line and not line.startswith("#")]


def locked() -> dict[str, tuple[Requirement, list[str]]]:
    """What the lock has: each requirement by its name, with its hashes."""
    text = re.sub(r"(?m)^ *#.*\n", "", LOCK.read_text()).replace("\\\n", " ")
    found: dict[str, tuple[Requirement, list[str]]] = {}
    for line in filter(None, text.splitlines()):
        written, *hashes = line.split(" --hash=")
        requirement = Requirement(written)
        found[canonicalize_name(requirement.name)] = requirement, [each.strip() for each in hashes]
    return found


def needed(some: list[Requirement]) -> Iterator[str]:
    """All that is installed here for the sake of some requirements, by name."""
    waiting, seen = [*some], set[str]()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        marker = requirement.marker
        if name in seen or (marker is not None and not marker.evaluate({"extra": ""})):
            continue
        seen.add(name)
        waiting += map(Requirement, requires(name) or ())
        yield name


def test_the_lock_has_what_setup_cfg_asks_for() -> None:
    lock = locked()
    for requirement in asked_for():
        exact, _ = lock[canonicalize_name(requirement.name)]
        [pinned] = exact.specifier
        assert pinned.operator == "==", exact
        assert requirement.specifier.contains(pinned.version), f"{requirement}: run scripts/lock"
        here = requirement.marker is None or requirement.marker.evaluate()
        assert here == (exact.marker is None or exact.marker.evaluate()), exact


def test_the_lock_has_all_that_these_need_in_turn() -> None:
    assert not set(needed(asked_for())) - set(locked()), "run scripts/lock"


def test_every_file_that_the_lock_allows_is_known_by_its_hash_and_by_nothing_else() -> None:
    for requirement, hashes in locked().values():
        assert hashes, requirement
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", each) for each in hashes), requirement
        assert requirement.url is None
    assert not re.search(r"(?m)://|^ *--(?!hash=)", LOCK.read_text()), "it names where packages come from"


def test_the_image_installs_from_the_lock_and_nothing_beside_it() -> None:
    dockerfile = (ROOT / "contrib" / "Dockerfile").read_text()
    installs = re.findall(r"pip install [^\n]*", dockerfile)
    assert len(installs) == 2
    assert "--require-hashes --requirement requirements.lock" in installs[0]
    assert "--no-deps" in installs[1]


# --- scripts/audit -----------------------------------------------------------------------------------

BUG = {"id": "PYSEC-1", "fix_versions": ["1.1"]}
CLEAN = {"name": "a", "version": "1.0", "vulns": []}
VULNERABLE = {"name": "b", "version": "1.0", "vulns": [BUG]}
UNKNOWN = {"name": "c", "version": "1.0", "skip_reason": "not found"}


def audit(folder: Path, printed: str) -> tuple[int, str]:
    """Run scripts/audit.py with a pip-audit that prints this."""
    (folder / "pip_audit.py").write_text(f"import sys\nsys.stdout.write({printed!r})\nsys.exit(1)\n")
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "audit.py"],
        env={"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("told", "code", "words"),
    [
        ([CLEAN], 0, "nothing is known against 1 packages"),
        ([CLEAN, VULNERABLE], 1, "b 1.0: PYSEC-1, mended in 1.1"),
        ([CLEAN, UNKNOWN], 2, "could ask about 1 of 2 packages only"),
        ([VULNERABLE, UNKNOWN], 1, "PYSEC-1"),
        ([], 2, "could ask about 0 of 0"),
    ],
)
def test_what_could_not_be_asked_is_not_taken_for_clean(
    tmp_path: Path, told: list[Any], code: int, words: str
) -> None:
    found, said = audit(tmp_path, json.dumps({"dependencies": told}))
    assert (found, words in said, said.count("\n")) == (code, True, 1)


def test_a_pip_audit_that_fails_is_said_in_one_line(tmp_path: Path) -> None:
    code, said = audit(tmp_path, "")
    assert (code, said) == (2, "scripts/audit: could not ask: it said nothing\n")
