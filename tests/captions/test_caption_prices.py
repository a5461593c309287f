import asyncio

import pytest

from mf2face.captions.prices import PRICES, Budget, Price, image_tokens, most_text_tokens, text_tokens


@pytest.mark.parametrize(
    ("size", "detail", "tokens"),
    # Worked by hand after the rule: fit into 2048, shorter side to 768, tiles of 512.
    [
        ((1024, 1024), "high", 85 + 170 * 4),
        ((512, 512), "high", 85 + 170),
        ((4096, 2048), "high", 85 + 170 * 6),
        ((4096, 4096), "low", 85),
        ((513, 100), "high", 85 + 170 * 2),
    ],
)
def test_image_tokens(size, detail, tokens):
    assert image_tokens(*size, PRICES["gpt-4o"], detail) == tokens


def test_prices_by_hand():
    price = PRICES["gpt-4o"]
    assert price.usd(1_000_000, 100_000) == pytest.approx(2.5 + 1.0)
    assert price.usd(1_000_000, 0, cached=400_000) == pytest.approx(0.6 * 2.5 + 0.4 * 1.25)
    assert price.usd(1_000_000, 100_000, batch=True) == pytest.approx(1.75)
    assert Price(1, 2).usd(1_000_000, 0, cached=1_000_000) == 1, "no discount is assumed"
    assert text_tokens(["x" * 400]) < most_text_tokens(["x" * 400])


def test_held_money_counts_until_the_bill_is_known():
    budget = Budget(1.0, spent=0.3)
    assert budget.try_hold(0.5) == 0.5
    assert budget.try_hold(0.3) is None
    budget.settle(0.5, 0.1)
    assert budget.spent == pytest.approx(0.4) and budget.held == 0
    assert budget.try_hold(0.6) is not None


def test_who_waits_goes_on_when_money_is_freed_and_is_told_when_none_will_be():
    async def wait() -> list:
        budget = Budget(1.0)
        first = await budget.hold(0.8)
        waiting = asyncio.create_task(budget.hold(0.8))
        await asyncio.sleep(0)
        assert not waiting.done()
        budget.settle(first, 0.1)
        second = await waiting
        budget.settle(second, 0.8)
        return [second, await budget.hold(0.2)]

    assert asyncio.run(wait()) == [0.8, None]


def test_a_bill_above_what_was_held_makes_all_later_ones_hold_more():
    budget = Budget(10.0)
    budget.settle(budget.try_hold(1.0), 2.0)
    assert budget.try_hold(1.0) == 2.0


def test_a_budget_is_above_zero():
    with pytest.raises(ValueError, match="budget: got 0, expected dollars above 0"):
        Budget(0)
