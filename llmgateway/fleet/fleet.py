"""The providers of one config: who is there, and who of them can serve whom.

A new config is taken over at once. A provider that is reached as before keeps all that is known of it; one
that is reached in another way is another provider. What is in flight with one that is gone ends in its own
time.
"""

from collections.abc import Callable, Collection, Sequence

from llmgateway.access.keys import Caller
from llmgateway.config.providers import ProviderConfig
from llmgateway.config.settings import Config
from llmgateway.fleet.provider import Provider
from llmgateway.fleet.share import ALL, Share
from llmgateway.servers.models import Model


class Fleet:
    """All providers of the gateway, in the order of the config file."""

    def __init__(self, config: Config) -> None:
        self._share = ALL
        self._listeners: list[Callable[[], None]] = []
        self._serving: dict[tuple[object, ...], list[Provider]] = {}
        self._usable: dict[tuple[object, ...], list[Provider]] = {}
        self._reaches: dict[tuple[object, ...], int] = {}
        self._numbers: dict[tuple[str, ...], int] = {}
        self._named: frozenset[str] = frozenset()
        self.sharing: dict[str, tuple[str | None, tuple[str, ...]]] = {}
        """Whose each provider is, and with whom it is shared: another one where reaches have changed."""
        self.providers: dict[str, Provider] = {}
        self.adopt(config)

    def adopt(self, config: Config) -> tuple[Provider, ...]:
        """Have the providers of this config, and no others, in its order; gives those that are gone.

        They are for the caller to retire; what they work on ends untouched.
        """
        self.unavailable_status = config.server.unavailable_status
        self.aliases, self.fallbacks = config.aliases, config.fallbacks
        before = self.providers
        kept = {
            name: provider
            for name, provider in before.items()
            if name in config.providers and provider.reached_as(config.providers[name])
        }
        for name, provider in kept.items():
            provider.adopt(config.providers[name], config.health)
        self.providers = {
            name: kept.get(name) or self._join(name, entry, config)
            for name, entry in config.providers.items()
        }
        self._map_reaches()
        gone = tuple(provider for name, provider in before.items() if name not in kept)
        for provider in gone:
            provider.gone = True
        self._usable.clear()
        self._changed()
        return gone

    def _join(self, name: str, entry: ProviderConfig, config: Config) -> Provider:
        return Provider(name, entry, config.health, changed=self._changed, share=self._share)

    def share_out(self, share: Share) -> None:
        """Have another share of the providers' slots."""
        self._share = share
        moved = [provider for provider in self.providers.values() if provider.share_out(share)]
        if moved:
            self._changed()

    def on_change(self, listener: Callable[[], None]) -> None:
        """Have a function called whenever a provider's state, models or capacity change, or who is there."""
        self._listeners.append(listener)

    def _changed(self) -> None:
        self._serving.clear()
        for listener in self._listeners:
            listener()

    def advertises(self, model: str) -> bool:
        """Tell whether any provider, up or not, has a model."""
        return any(provider.find(model) for provider in self.providers.values())

    def serving(self, caller: Caller, model: str, endpoint: str = "") -> Sequence[Provider]:
        """Give the providers that are online, usable by the caller, have model and endpoint. Remembered.

        Without a model that are all of them, but for those that have none for the caller's key.
        """
        asked = (caller.user, caller.groups, caller.route, model, endpoint)
        found = self._serving.get(asked)
        if found is None:
            found = self._found_serving(caller, model, endpoint)
            if not model:
                return [p for p in found if p.has_some_for(caller)]
            if found:  # anybody can ask for any name
                self._serving[asked] = found
        return found

    def _found_serving(self, caller: Caller, model: str, endpoint: str) -> list[Provider]:
        """Look at all providers once for all callers who may use the same."""
        asked = (self.reach(caller), model, endpoint)
        found = self._serving.get(asked)
        if found is None:
            usable = self.usable_by(caller)
            found = [p for p in usable if p.serves(model) and p.has_endpoint(endpoint, model)]
            if found:
                self._serving[asked] = found
        return found

    def may_come_to_serve(self, caller: Caller, model: str, endpoint: str = "") -> bool:
        """Tell whether it is worth waiting until somebody serves a model to a caller."""
        usable = self.usable_by(caller)
        return any(p.may_come_to_serve(model) and p.has_endpoint(endpoint, model) for p in usable)

    def usable_by(self, caller: Caller) -> Sequence[Provider]:
        """Give the providers that this caller may use, whatever their state, in their order. Remembered."""
        who = (caller.user, caller.groups, caller.route)
        usable = self._usable.get(who)
        if usable is None:
            usable = [p for p in self.providers.values() if p.usable_by(caller)]
            if caller.route == "only_own":
                usable = [p for p in usable if p.config.owner == caller.user]
            self._usable[who] = usable
        return usable

    def reach(self, caller: Caller) -> int:
        """Number which providers a caller may use: as all who may use the same, until `sharing` changes."""
        user = caller.user if caller.user in self._named else ""
        asked = (user, caller.groups & self._named, caller.route == "only_own")
        found = self._reaches.get(asked)
        if found is None:
            usable = tuple(p.name for p in self.usable_by(caller))
            found = self._reaches[asked] = self._numbers.setdefault(usable, len(self._numbers))
        return found

    def _map_reaches(self) -> None:
        sharing = {name: (p.config.owner, p.config.share) for name, p in self.providers.items()}
        if sharing == self.sharing:
            return
        self.sharing = sharing
        self._named = frozenset(
            name for owner, share in self.sharing.values() for name in (owner, *share) if name is not None
        )
        self._reaches.clear()
        self._numbers.clear()

    def models_for(self, caller: Caller, via: Collection[str] = ()) -> dict[str, tuple[Model, str]]:
        """Give each model that can be used now, but for those had by way of `via`, and its first provider."""
        passed = frozenset(via)
        found: dict[str, tuple[Model, str]] = {}
        for provider in self.usable_by(caller):
            if not (provider.online or provider.promising):
                continue
            for name, model in provider.models.items():
                told = caller.may_use(name) and passed.isdisjoint(model.via)
                if told and (name not in found or (passed and len(model.via) < len(found[name][0].via))):
                    found[name] = model, provider.name
        return found
