"""Programs and packages that some tests need; where one is missing they are skipped, or fail."""

from __future__ import annotations

import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Final, NoReturn

import pytest

_MISSING: Final = " is not installed"


def tool(name: str) -> str:
    """Give the path of a program. Skips the test where it is missing, unless all tests must run."""
    beside = Path(sys.executable).parent  # where a Python package has brought it
    return shutil.which(name) or shutil.which(name, path=f"{beside}:/usr/sbin:/sbin") or _miss(name)


def package(name: str) -> None:
    """Have a Python package. Skips the test where it is missing, unless all tests must run."""
    if find_spec(name) is None:
        _miss(name)


def _miss(name: str) -> NoReturn:
    if os.environ.get("LLMGATEWAY_TEST_ALL") == "1":
        pytest.fail(f"{name} is not installed, and LLMGATEWAY_TEST_ALL=1 says that all tests must run")
    pytest.skip(f"{name}{_MISSING}")


def what_was_skipped(reasons: Iterable[str]) -> str:
    """Say in one line how many tests were skipped, and for want of what; "" if none was."""
    count = Counter(reason.removeprefix("Skipped: ") for reason in reasons)
    if not count:
        return ""
    missing = sorted(filter(None, map(_missing, count)))
    others = sorted(reason for reason in count if not _missing(reason))
    why = [f"missing {', '.join(missing)}"] if missing else []
    tests = "1 test" if count.total() == 1 else f"{count.total()} tests"
    return f"skipped {tests}: {'; '.join([*why, *others])}"


def _missing(reason: str) -> str:
    """Name the program that a test was skipped for; "" if it was for something else."""
    return reason.removesuffix(_MISSING) if reason.endswith(_MISSING) else ""
