"""YAML -> Config, or all its problems, each with file, line and path.

Problems of the text (`source`), of shape (`fields`, `settings`) and of meaning (`references`) are reported
together.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, get_args, get_origin

from pydantic import ValidationError

from llmgateway.config import doubts, exposure, files, naming, references, values
from llmgateway.config.fields import Section
from llmgateway.config.providers import ProviderConfig
from llmgateway.config.references import KEY, Finding, Steps
from llmgateway.config.settings import Config, TlsConfig
from llmgateway.config.source import MAX_BYTES, Document, read
from llmgateway.config.tree import (
    ConfigError,
    Mark,
    Node,
    Pair,
    Pairs,
    Problem,
    Scalar,
    Series,
    from_python,
    in_order,
    joined,
    quoted,
)
from llmgateway.config.users import KeyConfig, KeyEntry


@dataclass(frozen=True, slots=True)
class Loaded:
    """A usable config, and what is doubtful about it."""

    config: Config
    warnings: tuple[Problem, ...] = ()


def load(path: Path, environ: Mapping[str, str]) -> Loaded:
    """Read the config file, and see that the files it names are there; their paths are made absolute.

    Relative ones count from the folder of the config file. Raises ConfigError, for a file that cannot be read
    as well.
    """
    try:
        with path.open("rb") as opened:
            source = opened.read(MAX_BYTES + 1)
            is_open = files.is_open(os.fstat(opened.fileno()), to=os.geteuid())
        folder = path.absolute().parent
    except (OSError, ValueError) as exc:
        why = getattr(exc, "strerror", None) or str(exc)
        raise ConfigError(
            [Problem(str(path), 1, 1, "", f"the file cannot be read ({why}); name another with -c")]
        ) from None
    document = read(source, file=str(path), environ=environ)
    keys: list[Finding] = []
    if document.root is not None:
        document = replace(document, root=_with_keys(document.root, folder, keys))
    findings = (*_unreadable(document.root, folder), *_not_installed(document.root), *keys)
    loaded = _loaded(document, str(path), findings, now=time.time())
    assert document.root is not None
    open_to_others = exposure.exposed(loaded.config, document.root, folder, is_open_itself=is_open)
    more = [_problem(str(path), document.root, place, message) for place, message in open_to_others]
    warnings = in_order((*loaded.warnings, *document.doubts, *more))
    return Loaded(_seen_from(folder, loaded.config), warnings)


def parse(text: str | bytes, *, file: str, environ: Mapping[str, str], now: float | None = None) -> Loaded:
    """Read a config from YAML text, leaving paths in it as they are; `now` is epoch seconds.

    Raises ConfigError.
    """
    document = read(text, file=file, environ=environ)
    return _loaded(document, file, now=time.time() if now is None else now)


def _loaded(document: Document, file: str, findings: Iterable[Finding] = (), *, now: float) -> Loaded:
    """Make a config of what was read; `findings` are complaints about it from elsewhere."""
    root = document.root
    if root is None:
        raise ConfigError(document.problems)
    config = _config(root, document, file, findings)
    found = doubts.doubts(config, root, now=now)
    return Loaded(config, in_order(_problem(file, root, path, message) for path, message in found))


def build(tree: Mapping[str, Any]) -> Config:
    """Make a Config out of plain Python values in the form of the file. Raises ConfigError."""
    root = from_python(tree)
    assert isinstance(root, Pairs)
    return _config(root, Document(root), "<built-in>")


def schema() -> dict[str, Any]:
    """The JSON Schema of the file, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Config.model_json_schema()}


def _config(root: Pairs, document: Document, file: str, findings: Iterable[Finding] = ()) -> Config:
    problems = list(document.problems)
    complaints = (*references.complaints(root), *naming.complaints(root), *findings)
    problems += [_problem(file, root, path, message) for path, message in complaints]
    try:
        config = Config.model_validate(_plain(root))
    except ValidationError as exc:
        problems += _of_shape(exc, root, file)
        raise ConfigError(problems) from None
    if problems:
        raise ConfigError(problems)
    return config


def _plain(node: Node) -> Any:
    """The tree as pydantic wants it: dicts and lists, with Scalars as leaves."""
    match node:
        case Pairs():
            return {key: _plain(pair.value) for key, pair in node.pairs.items()}
        case Series():
            return list(map(_plain, node.items))
        case Scalar():
            return None if node.null else node


# --- The files that it names ----------------------------------------------------------------------


def _seen_from(folder: Path, config: Config) -> Config:
    """The same config with absolute paths."""
    server, log = config.server, config.log
    if server.tls is not None:
        tls = {name: str(folder / path) for name, path in server.tls}
        server = server.model_copy(update={"tls": server.tls.model_copy(update=tls)})
    if server.listen is not None:
        server = server.model_copy(update={"listen": str(folder / server.listen)})
    if server.spool is not None:
        server = server.model_copy(update={"spool": str(folder / server.spool)})
    providers = {name: _trusting(folder, provider) for name, provider in config.providers.items()}
    if log.requests is not None:
        log = log.model_copy(update={"requests": str(folder / log.requests)})
    return config.model_copy(update={"server": server, "log": log, "providers": providers})


def _trusting(folder: Path, provider: ProviderConfig) -> ProviderConfig:
    if provider.tls.ca is None:
        return provider
    tls = provider.tls.model_copy(update={"ca": str(folder / provider.tls.ca)})
    return provider.model_copy(update={"tls": tls})


def _with_keys(root: Pairs, folder: Path, findings: list[Finding]) -> Pairs:
    """Put what each `api_key_file` holds in the place of an `api_key`; tell what cannot be read."""
    section = root.pairs.get("providers")
    if section is None or not isinstance(section.value, Pairs):
        return root
    providers = dict(section.value.pairs)
    for name, pair in providers.items():
        provider = pair.value
        named = provider.pairs.get("api_key_file") if isinstance(provider, Pairs) else None
        if named is None or not isinstance(named.value, Scalar) or not references.counts(named.value):
            continue
        assert isinstance(provider, Pairs)
        path = ("providers", name, "api_key_file")
        if "api_key" in provider.pairs:
            findings.append((path, "there is an `api_key` as well; write one of them, not both"))
            continue
        try:
            text = files.secret(folder / values.file_path(named.value.text))
        except files.Unreadable as exc:
            findings.append((path, str(exc)))
            continue
        except ValueError:
            continue  # no path at all, as `fields` tells
        key = Pair(Scalar(text, named.value.mark, from_env=True), named.key_mark)
        providers[name] = replace(pair, value=replace(provider, pairs={**provider.pairs, "api_key": key}))
    filled = replace(section, value=replace(section.value, pairs=providers))
    return replace(root, pairs={**root.pairs, "providers": filled})


def _unreadable(root: Pairs | None, folder: Path) -> Iterator[Finding]:
    """Why the certificates and the key that are named, if any, cannot be read."""
    if root is None:
        return
    providers = _locate(root, ("providers",)).node
    names = providers.pairs if isinstance(providers, Pairs) else ()
    own = ((("server", "tls", name), files.check) for name in TlsConfig.model_fields)
    folders = ((("server", "spool"), files.check_folder),)
    theirs = ((("providers", name, "tls", "ca"), files.check_certificates) for name in names)
    for path, check in (*own, *folders, *theirs):
        node = _locate(root, path).node
        if not isinstance(node, Scalar) or not references.counts(node):
            continue
        if why := _why_not(node.text, folder, check):
            yield path, why


def _not_installed(root: Pairs | None) -> Iterator[Finding]:
    """What a setting needs beside the gateway itself, and is not there."""
    redis = references.at(root, "cluster", "limits")
    if isinstance(redis, Scalar) and references.counts(redis) and find_spec("redis") is None:
        how = "run `scripts/setup redis`, or `pip install '.[redis]'` where it was installed otherwise"
        yield ("cluster", "limits"), f"this needs the Python package redis, which is not installed; {how}"
    otlp = references.at(root, "telemetry", "otlp")
    if isinstance(otlp, Scalar) and references.counts(otlp) and not _has_otlp():
        how = "run `scripts/setup otel`, or `pip install '.[otel]'` where it was installed otherwise"
        yield ("telemetry", "otlp"), f"this needs OpenTelemetry's packages, which are not installed; {how}"


def _has_otlp() -> bool:
    """Import what tells a collector: half a second's work, which a reload does here, in a thread."""
    try:
        import opentelemetry.exporter.otlp.proto.http.trace_exporter  # noqa: F401
    except ImportError:
        return False
    return True


def _why_not(name: str, folder: Path, check: Callable[[Path], None]) -> str:
    """Say what keeps a file from being read; "" if nothing does."""
    try:
        named = values.folder_path(name) if check == files.check_folder else values.file_path(name)
    except ValueError:
        return ""  # no path at all, as `fields` tells
    try:
        if named is not None:
            check(folder / named)
    except files.Unreadable as exc:
        return str(exc)
    return ""


# --- pydantic's errors, in our words --------------------------------------------------------------


def _sections(kind: Any, *path: str) -> Iterator[tuple[tuple[str, ...], type[Section]]]:
    """Every model within a type, each with its path in the file, where * is any name or number."""
    if kind is KeyConfig:
        kind = KeyEntry  # as which it stands in the file
    if isinstance(kind, type) and issubclass(kind, Section):
        yield path, kind
        for name, field in kind.model_fields.items():
            yield from _sections(field.annotation, *path, name)
    below = (*path, "*") if get_origin(kind) in (dict, tuple) else path
    for part in get_args(kind):
        yield from _sections(part, *below)


SECTIONS: Final = tuple(_sections(Config))


def _of_shape(exc: ValidationError, root: Pairs, file: str) -> Iterator[Problem]:
    for error in exc.errors(include_url=False, include_input=False):
        kind, path = error["type"], error["loc"]
        if kind == "reported":
            continue
        if kind == "extra_forbidden":
            yield _unknown_key(file, root, path)
        elif kind == "missing":
            yield _problem(file, root, path, f"`{path[-1]}` is missing; write one here")
        elif kind == "literal_error":
            yield _problem(file, root, path, _no_choice(root, path, error["ctx"]["expected"]))
        else:
            yield _problem(file, root, path, error["msg"])


def _no_choice(root: Pairs, path: Steps, expected: str) -> str:
    node = _locate(root, path).node
    written = quoted(node) if isinstance(node, Scalar) else "this value"
    return f"{written} is not one of the choices; write {expected}"


def _unknown_key(file: str, root: Pairs, path: Steps) -> Problem:
    model = _model_at(path[:-1])
    known = [field.alias or name for name, field in model.model_fields.items()]
    place = _locate(root, (*path, KEY))
    nearest = get_close_matches(str(path[-1]), known, 1)
    hint = f"did you mean `{nearest[0]}`?" if nearest else f"known here: {', '.join(known)}"
    if model is KeyEntry and path[-1] == "sha256":
        hint = "write the hash without a space after the colon, sha256:..."
    shown_path = (
        place.path if nearest or model is not KeyEntry else joined(path[:-1])
    )  # it may be a key out of place
    return Problem(file, place.mark.line, place.mark.column, shown_path, f"unknown key; {hint}")


def _model_at(path: Steps) -> type[Section]:
    for pattern, model in SECTIONS:
        if len(pattern) == len(path) and all(a in ("*", b) for a, b in zip(pattern, path, strict=True)):
            return model
    raise AssertionError(f"no model at {path}")


@dataclass(frozen=True, slots=True)
class Place:
    path: str
    mark: Mark
    node: Node | None


def _problem(file: str, root: Pairs, path: Steps, message: str) -> Problem:
    place = _locate(root, path)
    return Problem(file, place.mark.line, place.mark.column, place.path, message)


def _locate(root: Pairs, path: Steps) -> Place:
    """Find a place in the file; where the file ends before the path does, it is what stands there."""
    node: Node | None = root
    mark = key_mark = root.mark
    walked: list[int | str] = []
    for step in path:
        if isinstance(node, Pairs) and step in node.pairs:
            pair = node.pairs[str(step)]
            node, mark, key_mark = pair.value, pair.value.mark, pair.key_mark
        elif step == KEY:
            return Place(joined(walked), key_mark, None)
        elif isinstance(node, Series) and isinstance(step, int):
            node = node.items[step]
            mark = node.mark
        elif isinstance(node, Scalar) and not node.null:
            break  # written in one word, such as a key
        else:
            node = None
        walked.append(step)
    return Place(joined(walked), mark, node)
