"""Check what models are called across the file: names that are listed, renamed, or stand for others.

It looks at the tree as it was written, as `references` does. What a provider lists that finds out its models
by itself is not in the file: then any name may be one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final

from llmgateway.config.references import KEY, Finding, Steps, at, counts, names_in, words
from llmgateway.config.tree import Pairs, Scalar, Series, quoted, shown

_CHOICES: Final = 200  # did-you-mean compares with each of them


@dataclass(frozen=True, slots=True)
class _Entry:
    """An entry of `models`: what clients see, and where that stands."""

    path: Steps
    name: Scalar
    is_mapping: bool
    """Whether it says as well what the server is told."""


@dataclass(frozen=True, slots=True)
class _Names:
    """The names in the file: of models that providers surely have, and of aliases."""

    models: tuple[str, ...]
    aliases: Mapping[str, tuple[str, ...]]
    may_be_more: bool
    """Whether any provider finds out its models by itself."""

    def may_exist(self, name: str) -> bool:
        full = f"{name}:latest"  # Ollama's, for which the short one will do
        return self.may_be_more or name in self.models or full in self.models

    def is_alias(self, name: str) -> bool:
        """Whether it is nothing but an alias: a model of that name goes first."""
        return name in self.aliases and name not in self.models


def complaints(root: Pairs) -> Iterator[Finding]:
    """Everything about the names of models that does not agree, each with its path."""
    for provider in names_in(root, "providers"):
        yield from _two_of_a_name(root, provider)
        yield from _renames(root, provider)
    names = _names(root)
    yield from _aliases(root, names)
    yield from _fallbacks(root, names)


def doubts(root: Pairs) -> Iterator[Finding]:
    """A fallback for what nobody lists: as for a model whose server is gone from the file, or by a slip."""
    names = _names(root)
    for model in names_in(root, "fallbacks"):
        if not names.may_exist(model):
            yield ("fallbacks", model, KEY), _nobodys(Scalar(model), names)


def _names(root: Pairs) -> _Names:
    models: dict[str, None] = {}
    may_be_more = False
    for provider in names_in(root, "providers"):
        renamed = _renamed(root, provider)
        if isinstance(at(root, "providers", provider, "models"), Series):
            listed = ((entry, entry.name.text) for entry in _listed(root, provider))
            found = [
                name if entry.is_mapping or name not in renamed else renamed[name].text
                for entry, name in listed
            ]
        else:
            found = [name.text for name in renamed.values()]
            may_be_more = True
        models.update(dict.fromkeys(found))
    return _Names(tuple(models), _leads_to(root, "aliases"), may_be_more)


def _listed(root: Pairs, provider: str) -> Iterator[_Entry]:
    models = at(root, "providers", provider, "models")
    for index, item in enumerate(models.items if isinstance(models, Series) else ()):
        path = ("providers", provider, "models", index)
        name = at(item, "name") if isinstance(item, Pairs) else item
        if isinstance(name, Scalar) and counts(name):
            is_mapping = isinstance(item, Pairs)
            yield _Entry((*path, "name") if is_mapping else path, name, is_mapping)


def _renamed(root: Pairs, provider: str) -> dict[str, Scalar]:
    """Give what clients see of each model that is renamed, by what the server lists."""
    rename = at(root, "providers", provider, "rename")
    pairs = rename.pairs.items() if isinstance(rename, Pairs) else ()
    values = ((name, pair.value) for name, pair in pairs)
    return {name: value for name, value in values if isinstance(value, Scalar) and counts(value)}


# --- One provider ---------------------------------------------------------------------------------


def _two_of_a_name(root: Pairs, provider: str) -> Iterator[Finding]:
    renamed = _renamed(root, provider)
    seen: set[str] = set()
    for entry in _listed(root, provider):
        if entry.name.text in renamed and not entry.is_mapping:
            continue
        if entry.name.text in seen:
            yield entry.path, f"{quoted(entry.name)} stands here twice; keep one, or give it another `name`"
        seen.add(entry.name.text)


def _renames(root: Pairs, provider: str) -> Iterator[Finding]:
    renamed = _renamed(root, provider)
    has_list = isinstance(at(root, "providers", provider, "models"), Series)
    entries = tuple(_listed(root, provider))
    plain = {entry.name.text for entry in entries if not entry.is_mapping}
    others = {entry.name.text for entry in entries if entry.is_mapping or entry.name.text not in renamed}
    seen: dict[str, str] = {}
    for listed, name in renamed.items():
        path = ("providers", provider, "rename", listed)
        if has_list and listed not in plain:
            what = "`models` does not list it, so this renames nothing; write it there, or leave this out"
            yield (*path, KEY), what
        if name.text == listed:
            yield path, f"{quoted(name)} is its name already; write another, or leave this out"
        elif name.text in renamed:
            yield path, f"{quoted(name)} is renamed itself; a name can stand on one side only, write another"
        elif name.text in seen:
            first = shown(seen[name.text])
            yield path, f"{quoted(name)} is what '{first}' is called already; give each a name of its own"
        elif name.text in others:
            yield path, f"{quoted(name)} stands under `models` as well; give each a name of its own"
        seen.setdefault(name.text, listed)


# --- Names that stand for others ------------------------------------------------------------------


def _leads_to(root: Pairs, section: str) -> dict[str, tuple[str, ...]]:
    return {
        name: tuple(word.text for _, word in _targets(root, section, name))
        for name in names_in(root, section)
    }


def _targets(root: Pairs, section: str, name: str) -> Iterator[tuple[Steps, Scalar]]:
    """Give what a name leads to, one word or a list of them, each with its path."""
    value = at(root, section, name)
    if isinstance(value, Scalar) and counts(value):
        yield (section, name), value
    for index, word in words(root, section, name):
        yield (section, name, index), word


def _aliases(root: Pairs, names: _Names) -> Iterator[Finding]:
    for alias in names.aliases:
        yield from _repeated(root, "aliases", alias)
        for path, target in _targets(root, "aliases", alias):
            if target.text == alias:
                yield path, "an alias cannot stand for itself; write the name of a model"
            elif names.is_alias(target.text):
                yield path, _chained(target, alias, names.aliases)
            elif not names.may_exist(target.text):
                yield path, _nobodys(target, names)


def _chained(target: Scalar, alias: str, aliases: Mapping[str, tuple[str, ...]]) -> str:
    if way := _way(target.text, alias, aliases):
        loop = " -> ".join(map(shown, (alias, *way)))
        return f"this leads in a loop, {loop}; write the name of a model"
    return f"{quoted(target)} is an alias, and aliases do not chain; write what it stands for"


def _way(start: str, end: str, leads_to: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Give the names on the way from one to another, both included; none if there is no way."""
    ways: dict[str, tuple[str, ...]] = {start: (start,)}
    waiting = [start]
    while waiting:
        at_name = waiting.pop(0)
        for following in leads_to.get(at_name, ()):
            if following == end:
                return (*ways[at_name], end)
            if following not in ways:
                ways[following] = (*ways[at_name], following)
                waiting.append(following)
    return ()


def _fallbacks(root: Pairs, names: _Names) -> Iterator[Finding]:
    for model in names_in(root, "fallbacks"):
        if names.is_alias(model):
            what = f"'{shown(model)}' is an alias, for which this never counts; write what it stands for"
            yield ("fallbacks", model, KEY), what
        yield from _repeated(root, "fallbacks", model)
        for path, target in _targets(root, "fallbacks", model):
            if target.text == model:
                yield path, "a model cannot take its own place; write another one"
            elif names.is_alias(target.text):
                yield path, f"{quoted(target)} is an alias; write the name of a model"
            elif not names.may_exist(target.text):
                yield path, _nobodys(target, names)


def _repeated(root: Pairs, section: str, name: str) -> Iterator[Finding]:
    seen: set[str] = set()
    for path, word in _targets(root, section, name):
        if word.text in seen:
            yield path, f"{quoted(word)} stands here twice; keep one of them"
        seen.add(word.text)


def _nobodys(name: Scalar, names: _Names) -> str:
    """What to write for a name that no model can come to have."""
    start = f"{quoted(name)} is no model of any provider, and each has a list of `models`"
    choices = names.models if len(names.models) <= _CHOICES and not name.from_env else ()
    nearest = get_close_matches(name.text, choices, 1)
    return f"{start}; did you mean '{shown(nearest[0])}'?" if nearest else f"{start}; write one of those"
