"""Who is shown as having a model."""

from __future__ import annotations

from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from llmgateway.fleet.appearance import having, having_each
from llmgateway.fleet.provider import Probe, State
from llmgateway.servers import generic, ollama
from llmgateway.servers.kind import Kind
from llmgateway.servers.models import Model
from tests import simulation

NAMES = ("m", "m:latest", "n", "n:latest", "o")
FLEET = st.lists(
    st.tuples(
        st.sampled_from([generic.KIND, ollama.KIND]),
        st.sampled_from([State.ONLINE, State.WARMING, State.OFFLINE]),
        st.lists(st.sampled_from(NAMES), unique=True),
        st.booleans(),
    ),
    max_size=5,
)


@hypothesis_settings(deadline=None)
@given(FLEET)
def test_who_has_each_of_many_models_is_who_has_it_when_asked_for_it_alone(
    seen: list[tuple[Kind, State, list[str], bool]],
) -> None:
    fleet = simulation.fleet({f"p{number}": {} for number in range(len(seen))})
    for provider, (kind, state, names, servable) in zip(fleet.providers.values(), seen, strict=True):
        models = {name: Model(name, servable=servable) for name in names}
        provider.observe(Probe(State.ONLINE, "", models, kind=kind), now=0)
        provider.observe(Probe(state, certain=True), now=0)
    providers = list(fleet.providers.values())
    assert having_each(NAMES, providers) == {name: having(name, providers) for name in NAMES}
