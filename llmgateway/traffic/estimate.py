"""What a request is likely to cost, guessed before anything of it is known.

The prompt's tokens are fitted to its size, and the output is taken to be as long as usual, for each model, by
what answers have told so far. Memory is bounded.
"""

from typing import Final

_BYTES_A_TOKEN: Final = 4
_MOST_PROMPT_TOKENS: Final = 100_000
_REMEMBERED_MODELS: Final = 1_000
_UNKNOWN_OUTPUT: Final = 256.0  # tokens
_LEARNING: Final = 0.2


class OutputSize:
    """Learns how many tokens the answers of each model have."""

    def __init__(self) -> None:
        self._usual: dict[str, float] = {}

    def learn(self, model: str, completion_tokens: int) -> None:
        """Note what an answer of a model turned out to have; what was long ago counts less and less."""
        usual = self._usual.pop(model, None)
        if usual is None:
            usual = float(completion_tokens)
            while len(self._usual) >= _REMEMBERED_MODELS:
                del self._usual[next(iter(self._usual))]
        self._usual[model] = usual + _LEARNING * (completion_tokens - usual)

    def estimate(self, model: str, limit: int | None) -> float:
        """Guess the tokens of an answer; `limit` is the most that the request allows."""
        usual = self._usual.get(model, _UNKNOWN_OUTPUT)
        return usual if limit is None or usual < limit else limit


class Speed:
    """Learns how many tokens a second a provider writes of each model, from what it was sent to its answer.

    It is for answers that come in one piece: of one that nobody waited for, only the time is known.
    """

    def __init__(self) -> None:
        self._usual: dict[tuple[str, str], float] = {}

    def learn(self, provider: str, model: str, completion_tokens: int, seconds: float) -> None:
        """Note how long an answer took."""
        if completion_tokens <= 0 or seconds <= 0.0:
            return
        speed, known = completion_tokens / seconds, (provider, model)
        usual = self._usual.pop(known, speed)
        while len(self._usual) >= _REMEMBERED_MODELS:
            del self._usual[next(iter(self._usual))]
        self._usual[known] = usual + _LEARNING * (speed - usual)

    def estimate(self, provider: str, model: str, seconds: float, limit: int | None) -> int:
        """Guess what a provider has written in some seconds; 0 where nothing is known of it."""
        written = int(self._usual.get((provider, model), 0.0) * seconds)
        return written if limit is None else min(written, limit)


class PromptSize:
    """Learns how many prompt tokens a request has, from its size, for each model.

    A chat template adds some tokens to every request, and the tokenizer makes the rest of its bytes: so the
    tokens are fitted as `base + slope * size`, by least squares of the *relative* error, in which a long
    request does not drown the short ones. What was long ago counts less and less.
    """

    def __init__(self) -> None:
        self._fits: dict[str, _Fit] = {}

    def learn(self, model: str, size_bytes: int, prompt_tokens: int) -> None:
        """Note what a request of a model turned out to have."""
        if size_bytes <= 0 or prompt_tokens <= 0:
            return
        fit = self._fits.pop(model, None)
        if fit is None:
            while len(self._fits) >= _REMEMBERED_MODELS:
                del self._fits[next(iter(self._fits))]
            fit = _Fit()
        fit.learn(size_bytes, prompt_tokens)
        self._fits[model] = fit

    def estimate(self, model: str, size_bytes: int) -> int:
        """Guess the prompt tokens of a request; not too many, since a long one may be an image or a file."""
        fit = self._fits.get(model)
        guess = fit.estimate(size_bytes) if fit is not None else size_bytes / _BYTES_A_TOKEN
        if guess >= _MOST_PROMPT_TOKENS:
            return _MOST_PROMPT_TOKENS
        return int(guess + 0.5) if guess > 0.0 else 0


class _Fit:
    """Decayed sums of a weighted least squares line. They begin with a little of what we guess anyway."""

    DECAY: Final = 0.98  # half of what is known comes from the last 35 requests
    KNEE_BYTES: Final = 64  # below it the error counts as it is; above, relative to the size
    SPREAD: Final = 1e-3  # the least relative variance of the sizes that a slope is drawn from
    PRIOR: Final = 0.25
    PRIOR_BYTES: Final = 4096

    __slots__ = ("_sums",)

    def __init__(self) -> None:
        self._sums = (0.0, 0.0, 0.0, 0.0, 0.0)
        """Of the weights, of the sizes and the tokens by weight, and of the sizes times both of them."""
        self.learn(self.PRIOR_BYTES, self.PRIOR_BYTES / _BYTES_A_TOKEN, share=self.PRIOR)

    def learn(self, size: float, tokens: float, *, share: float = 1.0) -> None:
        """Let one more request count, and those before a little less."""
        decay, knee = self.DECAY, self.KNEE_BYTES
        weights, sizes, counts, squares, products = self._sums
        weight = share / ((size + knee) * (size + knee))
        mass = weight * size
        self._sums = (
            weights * decay + weight,
            sizes * decay + mass,
            counts * decay + weight * tokens,
            squares * decay + mass * size,
            products * decay + mass * tokens,
        )

    def estimate(self, size: float) -> float:
        """Give the tokens on the line at a size; neither its base nor its slope is ever negative."""
        weights, sizes, counts, squares, products = self._sums
        spread = weights * squares - sizes * sizes
        if spread < self.SPREAD * weights * squares:
            return products / squares * size
        slope = (weights * products - sizes * counts) / spread
        if slope < 0.0:
            slope = 0.0
        base = (counts - slope * sizes) / weights
        return base + slope * size if base >= 0 else products / squares * size
