"""What a request is likely to cost, guessed before anything of it is known.

The prompt's tokens are fitted to its size, and the output is taken to be as long as usual, for each model, by
what answers have told so far. Memory is bounded.
"""

from math import floor
from typing import Final

_BYTES_A_TOKEN: Final = 4
_MOST_PROMPT_TOKENS: Final = 100_000
_REMEMBERED_MODELS: Final = 1_000
_REMEMBERED_PROVIDERS: Final = 100  # of each model
_UNKNOWN_OUTPUT: Final = 256.0  # tokens
_LEARNING: Final = 0.2
_DECAY: Final = 0.98  # of a fit: half of what is known comes from the last 35 requests
_KNEE_BYTES: Final = 64.0  # below it the error counts as it is; above, relative to the size
_SPREAD: Final = 1e-3  # the least relative variance of the sizes that a slope is drawn from
_PRIOR: Final = 0.25
_PRIOR_BYTES: Final = 4096


class Usual:
    """Learns what requests of each model have, and the answers to them.

    All of it is behind one look-up, as each of its questions is asked for every request.
    """

    def __init__(self) -> None:
        self._models: dict[str, _Model] = {}

    def learn(
        self,
        model: str,
        prompt_bytes: int = 0,
        prompt_tokens: int = 0,
        completion_tokens: int | None = None,
        provider: str = "",
        seconds: float = 0.0,
    ) -> None:
        """Note what a request of a model turned out to have; what was long ago counts less and less.

        `seconds` are from when it was sent to its answer, for one that came in one piece.
        """
        known = self._models.pop(model, None)
        if known is None:
            while len(self._models) >= _REMEMBERED_MODELS:
                del self._models[next(iter(self._models))]
            known = _Model()
        self._models[model] = known
        if prompt_bytes > 0 and prompt_tokens > 0:
            known.prompt.learn(prompt_bytes, prompt_tokens)
        if completion_tokens is not None:
            known.answered(completion_tokens, provider, seconds)

    def prompt(self, model: str, size_bytes: int) -> int:
        """Guess the prompt tokens of a request; not too many, since a long one may be an image or a file."""
        known = self._models.get(model)
        guess = known.prompt.estimate(size_bytes) if known is not None else size_bytes / _BYTES_A_TOKEN
        if guess >= _MOST_PROMPT_TOKENS:
            return _MOST_PROMPT_TOKENS
        return floor(guess + 0.5) if guess > 0.0 else 0

    def output(self, model: str, limit: int | None) -> float:
        """Guess the tokens of an answer; `limit` is the most that the request allows."""
        known = self._models.get(model)
        usual = None if known is None else known.output
        if usual is None:
            usual = _UNKNOWN_OUTPUT
        return usual if limit is None or usual < limit else limit

    def written(self, provider: str, model: str, seconds: float, limit: int | None) -> int:
        """Guess what a provider has written in some seconds; 0 where nothing is known of it."""
        known = self._models.get(model)
        written = 0 if known is None else int(known.speeds.get(provider, 0.0) * seconds)
        return written if limit is None else min(written, limit)


class _Model:
    """What is known of one model."""

    __slots__ = ("output", "prompt", "speeds")

    def __init__(self) -> None:
        self.prompt = _Fit()
        self.output: float | None = None
        """How many tokens its answers have."""
        self.speeds: dict[str, float] = {}
        """How many tokens a second each provider writes, from what it was sent to its answer.

        It is for answers that come in one piece: of one that nobody waited for, only the time is known.
        """

    def answered(self, tokens: int, provider: str, seconds: float) -> None:
        """Note how many tokens an answer had, and in which time, if that says something."""
        usual = tokens if self.output is None else self.output
        self.output = usual + _LEARNING * (tokens - usual)
        if tokens > 0 and seconds > 0.0:
            speed = tokens / seconds
            usual = self.speeds.get(provider, speed)
            self.speeds[provider] = usual + _LEARNING * (speed - usual)
            if len(self.speeds) > _REMEMBERED_PROVIDERS:
                del self.speeds[next(iter(self.speeds))]


class _Fit:
    """How many prompt tokens a request has, from its size.

    A chat template adds some tokens to every request, and the tokenizer makes the rest of its bytes: so the
    tokens are fitted as `base + slope * size`, by least squares of the *relative* error, in which a long
    request does not drown the short ones. It begins with a little of what we guess anyway.
    """

    __slots__ = ("_sums",)

    def __init__(self) -> None:
        self._sums = (0.0, 0.0, 0.0, 0.0, 0.0)
        """Of the weights, of the sizes and the tokens by weight, and of the sizes times both of them."""
        self.learn(_PRIOR_BYTES, _PRIOR_BYTES / _BYTES_A_TOKEN, share=_PRIOR)

    def learn(self, size: float, tokens: float, *, share: float = 1.0) -> None:
        """Let one more request count, and those before a little less."""
        weights, sizes, counts, squares, products = self._sums
        distance = size + _KNEE_BYTES
        weight = share / (distance * distance)
        mass = weight * size
        self._sums = (
            weights * _DECAY + weight,
            sizes * _DECAY + mass,
            counts * _DECAY + weight * tokens,
            squares * _DECAY + mass * size,
            products * _DECAY + mass * tokens,
        )

    def estimate(self, size: float) -> float:
        """Give the tokens on the line at a size; neither its base nor its slope is ever negative."""
        weights, sizes, counts, squares, products = self._sums
        spread = weights * squares - sizes * sizes
        if spread < _SPREAD * weights * squares:
            return products / squares * size
        slope = (weights * products - sizes * counts) / spread
        if slope < 0.0:
            slope = 0.0
        base = (counts - slope * sizes) / weights
        return base + slope * size if base >= 0 else products / squares * size
