"""The SDK of Anthropic for Python."""

from harness import CITY, HELLO, MODEL, has_model, has_pieces, has_text, is_the_call, tell
from settings import client


def stream() -> None:
    with client.messages.stream(
        model=MODEL, messages=HELLO, max_tokens=32, extra_body={"temperature": 0}
    ) as came:
        has_pieces(came.text_stream)


def tools() -> None:
    answer = client.messages.create(
        model=MODEL,
        messages=HELLO,
        max_tokens=400,
        tools=[{"name": "weather", "description": "Tell the weather.", "input_schema": CITY}],
        tool_choice={"type": "any"},
        extra_body={"temperature": 2, "seed": 1},
    )
    call, *_ = (block for block in answer.content if block.type == "tool_use")
    is_the_call(call.name, call.input)


tell(
    models=lambda: has_model(model.id for model in client.models.list()),
    chat=lambda: has_text(client.messages.create(model=MODEL, messages=HELLO, max_tokens=32).content[0].text),
    stream=stream,
    tools=tools,
    tokens=lambda: client.messages.count_tokens(model=MODEL, messages=HELLO).input_tokens,
)
