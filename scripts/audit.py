"""Run pip-audit over requirements.lock, and tell what it found from what it could not ask.

pip-audit takes what it cannot look up for clean; here it counts as not asked.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
LOCK: Final = ROOT / "requirements.lock"
CLEAN, VULNERABLE, NOT_ASKED = 0, 1, 2


def judged(dependencies: Iterable[Mapping[str, Any]]) -> tuple[int, list[str]]:
    """Give the exit code, and what to say, of what pip-audit tells of each dependency."""
    some = list(dependencies)
    asked = [each for each in some if "skip_reason" not in each]
    found = [_told(each, bug) for each in asked for bug in each["vulns"]]
    if found:
        return VULNERABLE, found
    if len(asked) < len(some) or not some:
        return NOT_ASKED, [f"could ask about {len(asked)} of {len(some)} packages only: no data to be had"]
    return CLEAN, [f"nothing is known against {len(asked)} packages"]


def _told(package: Mapping[str, Any], bug: Mapping[str, Any]) -> str:
    mended = ", ".join(bug["fix_versions"]) or "no version"
    return f"{package['name']} {package['version']}: {bug['id']}, mended in {mended}"


def main() -> int:
    command = [
        sys.executable,
        "-m",
        "pip_audit",
        "--requirement",
        str(LOCK),
        "--disable-pip",
        "--format",
        "json",
    ]
    done = subprocess.run([*command, *sys.argv[1:]], capture_output=True, text=True, check=False)
    try:
        code, words = judged(json.loads(done.stdout)["dependencies"])
    except (ValueError, LookupError):
        last = (done.stderr.strip() or "it said nothing").splitlines()[-1]
        code, words = NOT_ASKED, [f"could not ask: {last}"]
    for each in words:
        print(f"scripts/audit: {each}", file=sys.stderr if code else sys.stdout)
    return code


if __name__ == "__main__":
    sys.exit(main())
