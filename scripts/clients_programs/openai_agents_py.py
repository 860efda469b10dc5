"""OpenAI's Agents SDK."""

import asyncio
from typing import Literal

from agents import Agent, ModelSettings, Runner, function_tool
from harness import has_pieces, has_text, is_the_call, tell
from openai.types.responses import ResponseTextDeltaEvent
from settings import model

called: list[str] = []
loop = asyncio.Runner()  # one, as its client belongs to the first that it meets


@function_tool
def weather(city: Literal["Oslo"]) -> str:
    """Tell the weather."""
    called.append(city)
    return "rain"


async def streamed() -> list[str]:
    came = Runner.run_streamed(Agent(name="a", model=model), "hello world")
    return [
        event.data.delta
        async for event in came.stream_events()
        if event.type == "raw_response_event" and isinstance(event.data, ResponseTextDeltaEvent)
    ]


def tools() -> None:
    agent = Agent(
        name="a",
        model=model,
        tools=[weather],
        tool_use_behavior="stop_on_first_tool",
        model_settings=ModelSettings(tool_choice="required", temperature=2, max_tokens=400),
    )
    loop.run(Runner.run(agent, "hello world"))
    is_the_call("weather", {"city": called[0]})


tell(
    chat=lambda: has_text(loop.run(Runner.run(Agent(name="a", model=model), "hello world")).final_output),
    stream=lambda: has_pieces(loop.run(streamed())),
    tools=tools,
)
