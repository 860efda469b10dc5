"""The laws of the house, read off the sources with `ast`: imports, state, and what is never caught.

Each law is a function from a source to its complaints, and is shown to fail on small bad sources.
"""

import ast
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import pytest

ROOT: Final = Path(__file__).resolve().parent.parent
PACKAGE: Final = "llmgateway"

# What each wing may import of ours, beside itself. Within a wing, modules import each other without a circle.
TOLD: Final = ("veil", "errors", "log")
ABOVE_TRAFFIC: Final = (*TOLD, "api", "servers", "http", "config", "access", "books", "fleet")
WINGS: Final = {
    "veil": (),
    "errors": ("veil",),
    "log": ("veil",),
    "api": ("errors",),
    "servers": (),
    "http": ("errors", "log", "api"),
    "config": ("api", "servers", "http"),
    "access": ("veil", "errors", "config"),
    "books": ("log", "api"),
    "fleet": ("errors", "log", "api", "servers", "http", "config", "access"),
    "traffic": ABOVE_TRAFFIC,
    "web": (*ABOVE_TRAFFIC, "traffic"),
    "cli": ("access", "books", "config", "fleet"),
    "service": (*ABOVE_TRAFFIC, "traffic", "web"),
}
# Bytes and numbers in, values out.
PURE_WINGS: Final = frozenset({"veil", "errors", "log", "api", "servers", "config", "access"})
PURE_MODULES: Final = frozenset(
    {"books.entry", "books.history", "books.ledger", "books.line", "books.metrics"}
    | {"cli.arguments", "cli.table", "cli.together", "cli.usage"}
    | {"books.speed", "books.totals", "fleet.absence", "fleet.appearance", "fleet.breaker"}
    | {"fleet.fleet", "fleet.naming", "fleet.provider", "fleet.publishing", "fleet.repertoire", "fleet.share"}
    | {"http.crowd", "http.dates", "http.frames", "http.handshake", "http.headers", "http.peers", "http.via"}
    | {
        "traffic.affinity",
        "traffic.estimate",
        "traffic.fairness",
        "traffic.keepers",
        "traffic.lanes",
        "traffic.listener",
        "traffic.overheard",
    }
    | {"traffic.router", "traffic.turns"}
)
OUTSIDE_PURE: Final = frozenset({"asyncio", "aiohttp", "socket", "ssl", "uvloop"})
WITH_AIOHTTP: Final = frozenset(
    {"http.downstream", "http.server", "http.client", "http.body", "cli.terminal", "service.demo", "web.live"}
)

MUTABLE_LITERALS: Final = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
MUTABLE_CALLS: Final = frozenset(
    {"list", "dict", "set", "bytearray", "defaultdict", "deque", "OrderedDict", "Counter", "count"}
    | {"WeakKeyDictionary", "WeakValueDictionary", "WeakSet", "Event", "Lock", "Queue", "Semaphore"}
)
MUTATORS: Final = frozenset(
    {"append", "appendleft", "extend", "insert", "add", "update", "setdefault"}
    | {"pop", "popitem", "popleft", "remove", "discard", "clear", "sort", "reverse"}
)
MOCKS: Final = frozenset({"unittest.mock", "mock", "pytest_mock"})
# What waits under a limit, and the place of the limit among its arguments.
WAITS: Final = (
    {"timeout": 0, "eventually": 1, "wait_for": 1}
    | {"next_call": 0, "hung_up": 0, "over": 0, "says": 1, "ended": 0}
    | {"response": 0, "piece": 1, "events": 2, "closed": 0, "receive_str": 0, "receive_bytes": 0}
)
LIMITS: Final = frozenset({"limit", "within", "timeout"})
CLOCKS: Final = frozenset({"monotonic", "perf_counter", "process_time", "time"})


@dataclass(frozen=True, slots=True)
class Source:
    """A parsed file; `module` is its name inside the package, `__init__` for the package itself."""

    module: str
    tree: ast.Module


Law: TypeAlias = Callable[[Source], Iterator[str]]


# --- What a module may import ---------------------------------------------------------------------


def imported_names(source: Source) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name) of every import, wherever it stands; relative ones made absolute."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, [PACKAGE if node.level else "", node.module]))
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def is_or_is_in(name: str, module: str) -> bool:
    """`llmgateway.keys.Key` is in `llmgateway.keys` and in `llmgateway`."""
    return f"{name}.".startswith(f"{module}.")


def wing_of(module: str) -> str:
    """`http` for `http.server`; the package itself has none."""
    return "" if module == "__init__" else module.split(".")[0]


def a_wing_imports_only_what_the_law_lets_it(source: Source) -> Iterator[str]:
    wing = wing_of(source.module)
    if wing and wing not in WINGS:
        yield f"1: {wing} is missing from WINGS: give it its place"
        return
    for line, name in imported_names(source):
        if not is_or_is_in(name, PACKAGE):
            continue
        target = name.removeprefix(PACKAGE).removeprefix(".").split(".")[0]
        if target.startswith("__"):
            continue
        if target not in WINGS:
            yield f"{line}: imports {name}: import from one listed wing at a time"
        elif target != wing and target not in WINGS.get(wing, ()):
            allowed = ", ".join(WINGS.get(wing, ())) or "nothing of ours"
            yield f"{line}: imports {name}; {wing or 'the package'} may import {allowed}"


def aiohttp_stays_where_it_is_needed(source: Source) -> Iterator[str]:
    if source.module in WITH_AIOHTTP:
        return
    for line, name in imported_names(source):
        if is_or_is_in(name, "aiohttp") or is_or_is_in(name, "aiohttp_sse"):
            yield f"{line}: imports {name}; aiohttp is for {', '.join(sorted(WITH_AIOHTTP))}"


def a_pure_module_knows_no_event_loop_and_no_network(source: Source) -> Iterator[str]:
    if wing_of(source.module) not in PURE_WINGS and source.module not in PURE_MODULES:
        return
    for line, name in imported_names(source):
        if name.split(".")[0] in OUTSIDE_PURE:
            yield f"{line}: imports {name}; {source.module} is pure"


def the_package_never_imports_the_front_door(source: Source) -> Iterator[str]:
    for line, name in imported_names(source):
        if is_or_is_in(name, "gateway"):
            yield f"{line}: imports {name}; gateway.py knows the package, not the other way round"


def imports_are_written_out(source: Source) -> Iterator[str]:
    """An import by a computed name, or of everything, would walk past the other laws."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call) and last_name(node.func) in {"__import__", "import_module"}:
            yield f"{node.lineno}: imports by a computed name"
        elif isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
            yield f"{node.lineno}: imports *"


# --- Where state may live -------------------------------------------------------------------------


def last_name(node: ast.expr) -> str:
    """`deque` for both `deque` and `collections.deque`; empty for anything else."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""


def is_mutable(value: ast.expr | None) -> bool:
    if isinstance(value, ast.Call):
        return last_name(value.func) in MUTABLE_CALLS
    return isinstance(value, MUTABLE_LITERALS)


def module_level(tree: ast.Module) -> Iterator[ast.stmt]:
    """Yield the statements that run on import: those in `if` and `try` too, but not in functions."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.stmt):
                yield child
            if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.expr)):
                waiting.append(child)


def mutable_globals(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield (line, name) of what is bound on import to something that can change."""
    for node in module_level(tree):
        match node:
            case ast.Assign(targets=targets, value=value) if is_mutable(value):
                yield from ((node.lineno, target.id) for target in targets if isinstance(target, ast.Name))
            case ast.AnnAssign(target=ast.Name(id=name), value=value) if is_mutable(value):
                yield node.lineno, name


def changed_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield (line, name) wherever the thing behind a name changes in place: `x[1] = 2`, `x.add(1)`."""
    for node in ast.walk(tree):
        match node:
            case ast.Subscript(value=ast.Name(id=name), ctx=ast.Store() | ast.Del()):
                yield node.lineno, name
            case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr=attr)) if attr in MUTATORS:
                yield node.lineno, name
            case ast.AugAssign(target=ast.Name(id=name)):
                yield node.lineno, name


def a_module_holds_no_state(source: Source) -> Iterator[str]:
    """Tables are welcome: in UPPER_CASE, and never changed. Two gateways can run in one process."""
    tables = {name: line for line, name in mutable_globals(source.tree)}
    for name, line in tables.items():
        if not name.isupper() and name != "__all__":
            yield f"{line}: {name} can change and is the module's; give it an owner, or make it a CONSTANT"
    for line, name in changed_names(source.tree):
        if name in tables:
            yield f"{line}: changes {name}, which belongs to the module; give it an owner"
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Global):
            yield f"{node.lineno}: global {', '.join(node.names)}"


# --- What is never caught, and what every file has ------------------------------------------------


def catches_everything(kind: ast.expr | None) -> bool:
    if isinstance(kind, ast.Tuple):
        return any(catches_everything(one) for one in kind.elts)
    return kind is not None and last_name(kind) in {"Exception", "BaseException"}


def does_nothing(body: list[ast.stmt]) -> bool:
    return all(
        isinstance(node, (ast.Pass, ast.Continue))
        or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        for node in body
    )


def no_failure_is_swallowed_whole(source: Source) -> Iterator[str]:
    for node in ast.walk(source.tree):
        match node:
            case ast.ExceptHandler(type=None):
                yield f"{node.lineno}: a bare except takes cancellation too; name what you expect"
            case ast.ExceptHandler(type=kind, body=body) if catches_everything(kind) and does_nothing(body):
                yield f"{node.lineno}: swallows every failure; name what you expect, or log it"
            case ast.Call(func=func, args=args) if last_name(func) == "suppress":
                if any(catches_everything(kind) for kind in args):
                    yield f"{node.lineno}: suppresses every failure; name what you expect"


def a_test_mocks_nothing(source: Source) -> Iterator[str]:
    for line, name in imported_names(source):
        if any(is_or_is_in(name, mock) for mock in MOCKS):
            yield f"{line}: imports {name}; script a small real provider instead"


def is_number(node: ast.expr) -> bool:
    match node:
        case ast.BinOp(left=left, right=right):
            return is_number(left) and is_number(right)
        case ast.Constant(value=int() | float()):
            return True
    return False


def a_test_knows_no_number_of_seconds(source: Source) -> Iterator[str]:
    """Whether something took so long depends on what else the machine does."""
    for node in ast.walk(source.tree):
        match node:
            case ast.Call(func=func, args=args, keywords=keywords) if waits(func):
                limits = args[WAITS[last_name(func)] :][:1]
                limits += [keyword.value for keyword in keywords if keyword.arg in LIMITS]
                if any(map(is_number, limits)):
                    yield f"{node.lineno}: waits for so many seconds; take HANG_S of tests/guard.py"
            case ast.Assert(test=test):
                for compared in (each for each in ast.walk(test) if isinstance(each, ast.Compare)):
                    sides = (compared.left, *compared.comparators)
                    if any(map(is_number, sides)) and any(map(reads_a_clock, sides)):
                        yield f"{node.lineno}: asserts a number of seconds; compare two times of one run"


def waits(func: ast.expr) -> bool:
    return last_name(func) in WAITS and (isinstance(func, ast.Attribute) or last_name(func) == "eventually")


def reads_a_clock(node: ast.expr) -> bool:
    calls = (each for each in ast.walk(node) if isinstance(each, ast.Call))
    return any(last_name(call.func) in CLOCKS for call in calls)


def a_file_opens_with_its_promise(source: Source) -> Iterator[str]:
    if not (ast.get_docstring(source.tree) or "").strip():
        yield "1: has no docstring: say in one sentence what the file is for"


# --- The laws, held against the sources -----------------------------------------------------------

IMPORTS: Final[tuple[Law, ...]] = (
    a_wing_imports_only_what_the_law_lets_it,
    aiohttp_stays_where_it_is_needed,
    a_pure_module_knows_no_event_loop_and_no_network,
    the_package_never_imports_the_front_door,
    imports_are_written_out,
)
PROGRAM: Final[tuple[Law, ...]] = (
    a_module_holds_no_state,
    no_failure_is_swallowed_whole,
    a_file_opens_with_its_promise,
)
TESTS: Final[tuple[Law, ...]] = (
    a_test_mocks_nothing,
    a_test_knows_no_number_of_seconds,
    no_failure_is_swallowed_whole,
)

MODULES: Final = tuple(sorted((ROOT / PACKAGE).rglob("*.py")))
FRONT_DOOR: Final = tuple(ROOT.glob("gateway.py"))
TEST_FILES: Final = tuple(sorted((ROOT / "tests").rglob("*.py")))
CASES: Final = (
    *((law, path) for law in (*IMPORTS, *PROGRAM) for path in MODULES),
    *((law, path) for law in PROGRAM for path in FRONT_DOOR),
    *((law, path) for law in TESTS for path in TEST_FILES),
)


def case_id(value: object) -> str:
    return (
        "/".join(value.relative_to(ROOT).with_suffix("").parts)
        if isinstance(value, Path)
        else str(getattr(value, "__name__", value))
    )


def read(path: Path) -> Source:
    relative = path.relative_to(ROOT / PACKAGE) if path in MODULES else path.relative_to(ROOT)
    tree = ast.parse(path.read_text("utf-8"), filename=str(path))
    parts = relative.with_suffix("").parts
    return Source(".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts), tree)


@pytest.mark.parametrize(("law", "path"), CASES, ids=case_id)
def test_the_law_holds(law: Law, path: Path) -> None:
    complaints = [f"{path.relative_to(ROOT)}:{complaint}" for complaint in law(read(path))]
    assert not complaints, "\n".join(complaints)


def circles(imports: Mapping[str, Collection[str]]) -> Iterator[str]:
    """Name the modules that lie on a circle of imports."""
    for start in imports:
        seen: set[str] = set()
        waiting = [*imports[start]]
        while waiting:
            module = waiting.pop()
            if module not in seen:
                seen.add(module)
                waiting += imports.get(module, ())
        if start in seen:
            yield start


def ours(source: Source, modules: Collection[str]) -> set[str]:
    """The modules of ours that a source imports, by the longest name that is one."""
    found = set()
    for _, name in imported_names(source):
        inner = name.removeprefix(f"{PACKAGE}.")
        if is_or_is_in(name, PACKAGE):
            found |= {inner, inner.rpartition(".")[0]} & {*modules}
    return found


def test_no_module_imports_itself_by_way_of_others() -> None:
    sources = {source.module: source for source in map(read, MODULES)}
    assert not sorted(circles({name: ours(source, sources) for name, source in sources.items()}))


def test_a_circle_is_found() -> None:
    assert sorted(circles({"a": ["b"], "b": ["c"], "c": ["b"], "d": ["a"]})) == ["b", "c"]
    assert ours(Source("a", ast.parse("from llmgateway.http import tls")), ["http.tls"]) == {"http.tls"}


def test_there_is_something_to_hold_the_laws_against() -> None:
    assert {"__init__", "errors"} <= {path.stem for path in MODULES}


# --- Each law can fail ----------------------------------------------------------------------------

BAD: Final[tuple[tuple[Law, str, str], ...]] = (
    (a_wing_imports_only_what_the_law_lets_it, "access.keys", "from llmgateway.traffic.router import choose"),
    (a_wing_imports_only_what_the_law_lets_it, "access.keys", "from llmgateway.traffic import router"),
    (a_wing_imports_only_what_the_law_lets_it, "access.keys", "from llmgateway import traffic"),
    (a_wing_imports_only_what_the_law_lets_it, "access.keys", "import llmgateway.traffic.router as r"),
    (a_wing_imports_only_what_the_law_lets_it, "access.keys", "from .traffic.router import choose"),
    (
        a_wing_imports_only_what_the_law_lets_it,
        "access.keys",
        "def late():\n    from llmgateway import web",
    ),
    (
        a_wing_imports_only_what_the_law_lets_it,
        "access.keys",
        "if TYPE_CHECKING:\n    from .web import App",
    ),
    (a_wing_imports_only_what_the_law_lets_it, "access.keys", "import llmgateway"),
    (a_wing_imports_only_what_the_law_lets_it, "access.keys", "from llmgateway import unheard_of"),
    (a_wing_imports_only_what_the_law_lets_it, "servers.kind", "from llmgateway.errors import GatewayError"),
    (a_wing_imports_only_what_the_law_lets_it, "service.gateway", "from llmgateway.cli import commands"),
    (a_wing_imports_only_what_the_law_lets_it, "__init__", "from llmgateway import errors"),
    (a_wing_imports_only_what_the_law_lets_it, "unheard_of", ""),
    (a_wing_imports_only_what_the_law_lets_it, "sub.keys", ""),
    (aiohttp_stays_where_it_is_needed, "traffic.router", "import aiohttp"),
    (aiohttp_stays_where_it_is_needed, "fleet.fleet", "def late():\n    from aiohttp.web import Response"),
    (aiohttp_stays_where_it_is_needed, "unheard_of", "import aiohttp"),
    (aiohttp_stays_where_it_is_needed, "web.pages", "from aiohttp_sse import EventSourceResponse"),
    (a_pure_module_knows_no_event_loop_and_no_network, "api.peek", "import asyncio"),
    (a_pure_module_knows_no_event_loop_and_no_network, "access.keys", "from asyncio.tasks import sleep"),
    (a_pure_module_knows_no_event_loop_and_no_network, "books.history", "if TYPE_CHECKING:\n    import ssl"),
    (the_package_never_imports_the_front_door, "commands", "import gateway"),
    (the_package_never_imports_the_front_door, "app", "def late():\n    from gateway import main"),
    (imports_are_written_out, "app", "importlib.import_module(name)"),
    (imports_are_written_out, "app", "__import__('llmgateway.app')"),
    (imports_are_written_out, "app", "from llmgateway.errors import *"),
    (a_module_holds_no_state, "app", "sessions = {}"),
    (a_module_holds_no_state, "app", "sessions: dict[str, int] = {}"),
    (a_module_holds_no_state, "app", "if True:\n    seen = collections.deque()"),
    (a_module_holds_no_state, "app", "try:\n    pass\nexcept ImportError:\n    seen = [x for x in y]"),
    (a_module_holds_no_state, "app", "SEEN = set()\ndef see(x):\n    SEEN.add(x)"),
    (a_module_holds_no_state, "app", "SEEN: Final = {}\ndef see(x):\n    SEEN[x] = 1"),
    (a_module_holds_no_state, "app", "SEEN = {1: 2}\ndef see(x):\n    del SEEN[x]"),
    (a_module_holds_no_state, "app", "total = 0\ndef more():\n    global total\n    total += 1"),
    (no_failure_is_swallowed_whole, "app", "try:\n    pass\nexcept:\n    raise"),
    (no_failure_is_swallowed_whole, "app", "try:\n    pass\nexcept Exception:\n    pass"),
    (no_failure_is_swallowed_whole, "app", "try:\n    pass\nexcept (OSError, BaseException):\n    ..."),
    (no_failure_is_swallowed_whole, "app", "for x in y:\n try:\n  pass\n except Exception:\n  continue"),
    (no_failure_is_swallowed_whole, "app", "with contextlib.suppress(Exception):\n    f()"),
    (a_test_mocks_nothing, "tests.test_x", "from unittest.mock import AsyncMock"),
    (a_test_mocks_nothing, "tests.test_x", "from unittest import mock"),
    (a_test_mocks_nothing, "tests.test_x", "import unittest.mock"),
    (a_test_knows_no_number_of_seconds, "tests.test_x", "async with asyncio.timeout(5):\n    pass"),
    (a_test_knows_no_number_of_seconds, "tests.test_x", "pytest.mark.timeout(2 * 60)"),
    (a_test_knows_no_number_of_seconds, "tests.test_x", "eventually(lambda: done, 0.5)"),
    (a_test_knows_no_number_of_seconds, "tests.test_x", "exchange.hung_up(within=1)"),
    (a_test_knows_no_number_of_seconds, "tests.test_x", "assert time.monotonic() - began < 10"),
    (a_file_opens_with_its_promise, "app", "import os"),
    (a_file_opens_with_its_promise, "app", "'  '"),
)
GOOD: Final = '''"""A page that keeps every law."""
import asyncio
import aiohttp
import unittest
from llmgateway import __version__, errors
from llmgateway.fleet.fleet import Fleet
__all__ = ["relay"]
HOP_BY_HOP: Final = {"connection", "te"}
TABLE = {name: 1 for name in HOP_BY_HOP}
request_id = ContextVar("request_id")
def relay(seen):
    seen[1] = 2
    local = []
    local.append(1)
    try:
        pass
    except OSError:
        pass
    except Exception:
        log.exception("failed")
'''


@pytest.mark.parametrize(("law", "module", "text"), BAD, ids=case_id)
def test_the_law_catches(law: Law, module: str, text: str) -> None:
    assert list(law(Source(module, ast.parse(text))))


@pytest.mark.parametrize("law", sorted({*IMPORTS, *PROGRAM, *TESTS}, key=case_id), ids=case_id)
def test_the_law_can_fail_and_can_be_kept(law: Law) -> None:
    assert law in {bad for bad, _, _ in BAD}
    assert not list(law(Source("web.live", ast.parse(GOOD))))
