"""LlamaIndex, by its packages for servers like OpenAI's."""

from harness import TEXTS, has_pieces, has_text, has_vectors, is_the_call, tell
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from settings import embeddings, llm


def weather(city: str) -> str:
    """Tell the weather."""
    return city


def tools() -> None:
    answer = llm.chat_with_tools(
        [FunctionTool.from_defaults(weather)], user_msg="hello world", tool_required=True, temperature=2
    )
    call, *_ = llm.get_tool_calls_from_response(answer)
    is_the_call(call.tool_name, {"city": "Oslo"} if set(call.tool_kwargs) == {"city"} else call.tool_kwargs)


HELLO = [ChatMessage(role="user", content="hello world")]
tell(
    chat=lambda: has_text(llm.chat(HELLO).message.content),
    stream=lambda: has_pieces(part.delta for part in llm.stream_chat(HELLO)),
    tools=tools,
    embeddings=lambda: has_vectors(embeddings.get_text_embedding_batch(TEXTS)),
)
