"""What captions will cost, what they have cost, and a limit that is never passed."""

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


PRICES_AS_OF = "2026-06"
"""When the table was last compared with the list prices. Pass your own `Price` where it is out of date."""


@dataclass(frozen=True)
class Price:
    """US dollars for a million tokens. `image_base` and `image_tile` are the tokens of an image and of each 512 x 512
    tile of it; `batch` is the Batch API's share of the price."""

    input: float
    output: float
    cached_input: float | None = None
    image_base: int = 85
    image_tile: int = 170
    batch: float = 0.5

    def __post_init__(self) -> None:
        if not (0 <= self.input < math.inf and 0 <= self.output < math.inf):
            expected = "expected dollars for a million tokens, from 0"
            raise ValueError(f"price: got {self.input} and {self.output}, {expected}")

    def usd(self, input_tokens: float, output_tokens: float, cached: float = 0, batch: bool = False) -> float:
        cached_price = self.input if self.cached_input is None else self.cached_input
        dollars = (input_tokens - cached) * self.input + cached * cached_price + output_tokens * self.output
        return dollars / 1e6 * (self.batch if batch else 1)

    def image_tokens(self, height: float, width: float, detail: str = "high") -> int:
        """At high detail an image is fitted into 2048 x 2048, its shorter side into 768, and cut into tiles of 512."""
        if detail == "low":
            return self.image_base
        scale = min(1, 2048 / max(height, width))
        scale *= min(1, 768 / (min(height, width) * scale))
        tiles = math.ceil(height * scale / 512 - 1e-9) * math.ceil(width * scale / 512 - 1e-9)
        return self.image_base + self.image_tile * tiles


# Exact names only: a dated snapshot may cost another price.
PRICES: Mapping[str, Price] = {
    "gpt-4o": Price(2.50, 10.00, 1.25),
    "gpt-4o-2024-08-06": Price(2.50, 10.00, 1.25),
    "gpt-4o-2024-11-20": Price(2.50, 10.00, 1.25),
    "gpt-4o-mini": Price(0.15, 0.60, 0.075, image_base=2833, image_tile=5667),
    "gpt-4.1": Price(2.00, 8.00, 0.50),
}

# The usual length of an answer; only estimates use it.
_ANSWER_TOKENS: Mapping[str, int] = {
    **{"au_caption": 130, "emotion_caption": 50, "key_au_caption": 90},
    **{"exp_blip_au": 30, "exp_blip_emot": 10, "exp_blip_exp": 45, "vl_fau_global": 45, "vl_fau_local": 330},
}
_MESSAGE_TOKENS, _KEY_TOKENS = 8, 8


def answer_tokens(captions: Sequence[str]) -> int:
    return sum(_ANSWER_TOKENS[name] + _KEY_TOKENS for name in captions)


def text_tokens(texts: Sequence[str]) -> int:
    """An estimate: English has about four characters a token."""
    return sum(math.ceil(len(text) / 4) + _MESSAGE_TOKENS for text in texts)


def most_text_tokens(texts: Sequence[str]) -> int:
    """An upper bound: a token is at least one byte."""
    return sum(len(text.encode()) + 2 * _MESSAGE_TOKENS for text in texts)


@dataclass(frozen=True)
class Estimate:
    """`usd` is None if the model's price is unknown; `usd_at_most` if every answer is as long as allowed and is sent
    back once."""

    requests: int
    input_tokens: int
    output_tokens: int
    usd: float | None
    usd_at_most: float | None

    def __str__(self) -> str:
        tokens = f"{self.requests:,} requests, about {self.input_tokens:,} tokens in and {self.output_tokens:,} out"
        if self.usd is None:
            return f"{tokens}; no price is known for this model: pass price=Price(input=..., output=...)"
        return f"{tokens}: about ${self.usd:,.2f}, at most ${self.usd_at_most:,.2f} (prices of {PRICES_AS_OF})"


class Budget:
    """Dollars: `spent` for certain or perhaps, `held` for requests under way. Together they never pass `limit`.

    A request's largest possible price is held before it is sent. If an answer cost more than was held (a model that
    thinks, another way to count images), all later ones hold more by that ratio.
    """

    def __init__(self, limit: float | None = None, spent: float = 0.0) -> None:
        if limit is not None and not limit > 0:
            raise ValueError(f"budget: got {limit}, expected dollars above 0, or None for no limit")
        self.limit, self.spent, self.held = limit, spent, 0.0
        self._under_way, self._ratio, self._freed = 0, 1.0, asyncio.Event()

    def __str__(self) -> str:
        return f"budget: ${self.spent:,.4f} of ${self.limit:,.4f} are spent"

    def try_hold(self, usd: float) -> float | None:
        """The amount that is now held, or None if it does not fit at present."""
        amount = usd * self._ratio
        if self.limit is not None and self.spent + self.held + amount > self.limit:
            return None
        self.held += amount
        self._under_way += 1
        return amount

    async def hold(self, usd: float) -> float | None:
        """Waits for requests under way to free what they do not need; None if even without them it does not fit."""
        while (amount := self.try_hold(usd)) is None:
            if not self._under_way:
                return None
            self._freed.clear()
            await self._freed.wait()
        return amount

    def settle(self, held: float, usd: float) -> None:
        self._under_way -= 1
        self.held = self.held - held if self._under_way else 0.0  # no rests of rounding
        self.spent += usd
        if held > 0 and usd > held:
            self._ratio *= usd / held
        self._freed.set()


__all__ = ["PRICES", "Budget", "Estimate", "Price", "answer_tokens", "most_text_tokens", "text_tokens"]
