"""What `gateway.pyz` does first: tell how to install what is compiled, and so cannot be inside.

What is needed is read off what the distributions inside say of themselves; nothing is imported before that.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from shlex import quote

from packaging.requirements import Requirement

TOLD = """\
{program} has inside what is the same on every machine. What is compiled is missing, or of another version:

    {missing}

Install it, once, into a folder beside the program, and run the program with the Python there:

    {python} -m venv gateway.venv
    gateway.venv/bin/python -m pip install {missing}
    gateway.venv/bin/python {program}"""


def missing(name: str) -> list[str]:
    """Give what a distribution needs, directly or not, and is not here in a version that will do."""
    waiting, seen, found = [name], set[str](), []
    while waiting:
        current = waiting.pop()
        for requirement in needed(current):
            if str(requirement) in seen:
                continue
            seen.add(str(requirement))
            try:
                version = distribution(requirement.name).version
            except PackageNotFoundError:
                version = ""
            if version and requirement.specifier.contains(version, prereleases=True):
                waiting.append(requirement.name)
            else:
                found.append(f"{requirement.name}{requirement.specifier}")
    return sorted(found)


def needed(name: str) -> Iterator[Requirement]:
    """Give what a distribution says that it needs here, without extras."""
    for line in distribution(name).requires or ():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement


def main() -> int:
    if some := missing("llmgateway"):
        words = {"program": quote(sys.argv[0]), "python": quote(sys.executable)}
        sys.exit(TOLD.format(missing=" ".join(map(quote, some)), **words))
    from gateway import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
