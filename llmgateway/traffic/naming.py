"""Which model a request is for while it goes on, and by which name a provider is asked for it.

A request is for a model by the name that clients see. What the client has asked for may have been an alias of
it, and what a provider is told may be a name of its server's own; only then is the request written anew, and
only for that provider. Nobody is asked for another model than that while anybody is online who serves it.
"""

from llmgateway.access.keys import Caller
from llmgateway.errors import GatewayError, ProviderWarming
from llmgateway.fleet.address import Outgoing
from llmgateway.fleet.provider import Provider
from llmgateway.traffic.answers import own_lines
from llmgateway.traffic.call import Call
from llmgateway.traffic.slots import Slots
from llmgateway.traffic.story import Story


def name_for(call: Call, caller: Caller, slots: Slots) -> str:
    """Have a call be for what its model means, and give the name by which its caller may have that.

    Raises GatewayError (403).
    """
    meaning = slots.meaning(caller, call.model, call.endpoint)
    if meaning == call.model:
        return slots.permitted_name(caller, meaning)
    call.be_for(meaning)
    try:
        return slots.permitted_name(caller, meaning)
    except GatewayError as error:
        raise as_asked(error, call) from None


def turns(story: Story, slots: Slots, *, in_vain: bool = False) -> bool:
    """Have a request be for another model, if nobody is online who serves the one that it is for.

    `in_vain` says that it has waited long enough for somebody who is about to.
    """
    call, order = story.call, story.order
    if story.held is not None or order.only or not call.model or not call.outgoing.repeatable:
        return False
    if not all(failure.away or isinstance(failure, ProviderWarming) for failure in story.failures):
        return False
    if slots.is_served(order) if in_vain else slots.hopeful(order):
        return False
    if story.instead is None:
        story.instead = slots.instead(order, call.asked or call.model)
    found = slots.turn(order, story.instead)
    if found:
        story.instead.remove(found)
        call.be_for(found)
    return bool(found)


def asking(provider: Provider, story: Story) -> Outgoing:
    """Give a request as it goes to a provider: with the name by which that knows the model.

    A short name that the client has used itself, and its server takes, stays.
    """
    call, found = story.call, provider.find(story.order.model)
    asked = call.asked or call.model
    told = call.model if found is None else found.listed_as
    story.told = provider.name, "" if told == asked else told
    stays = not call.asked and (found is None or not found.told_as)
    return call.outgoing if stays or told == asked else call.outgoing.asking_for(told)


def own_lines_of(provider: Provider, story: Story) -> bytes:
    """Write our fields of an answer, with the name that its provider was told if that is not the client's.

    That is what it was then; by now there may be another config.
    """
    order, asked = story.order, story.call.model
    by, told = story.told
    if by != provider.name and asked not in provider.models and (found := provider.find(asked)) is not None:
        told = found.id
    elif by != provider.name:
        told = ""
    return own_lines(provider.name, told, order.affinity, order.waited_s)


def as_asked(error: GatewayError, call: Call) -> GatewayError:
    """Say in an error about a model what the client has asked for, if it was not that."""
    if not call.asked:
        return error
    words = f" It was asked for as '{call.asked}'."
    return GatewayError(error.kind, error.message + words, error.headers, error.brief + words)
