"""LangChain, by its package for OpenAI."""

from harness import TEXTS, TOOL, has_pieces, has_text, has_vectors, is_the_call, tell
from settings import embeddings, model


def tools() -> None:
    bound = model.bind_tools([TOOL], tool_choice="required").bind(temperature=2, seed=1, max_tokens=400)
    call, *_ = bound.invoke("hello world").tool_calls
    is_the_call(call["name"], call["args"])


tell(
    chat=lambda: has_text(model.invoke("hello world").content),
    stream=lambda: has_pieces(part.content for part in model.stream("hello world")),
    tools=tools,
    embeddings=lambda: has_vectors(embeddings.embed_documents(TEXTS)),
)
