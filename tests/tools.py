"""Programs of the system that some tests need; where one is missing they are skipped, or fail."""

from __future__ import annotations

import os
import shutil

import pytest


def tool(name: str) -> str:
    """Give the path of a program. Skips the test where it is missing, unless all tests must run."""
    if path := shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin"):
        return path
    if os.environ.get("LLMGATEWAY_TEST_ALL") == "1":
        pytest.fail(f"{name} is not installed, and LLMGATEWAY_TEST_ALL=1 says that all tests must run")
    pytest.skip(f"{name} is not installed")
