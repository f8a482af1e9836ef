"""The choice between fluctuation and response."""

from __future__ import annotations

import pytest

from bif.response import Cost, choose_estimator


def test_the_estimator_that_needs_less_time_for_the_same_error_is_taken():
    # For an error of 1 the fluctuation takes 10·4 = 40 s, a response 8·1/4 = 2 s a query.
    costs = {"fluctuation": Cost(10.0, 2.0, 4), "response": Cost(8.0, 1.0, 4)}
    few, many = choose_estimator(19, **costs), choose_estimator(21, **costs)
    assert (few.value, many.value) == ("response", "fluctuation")
    assert "responses of 20 queries; there are 19" in few.reason and "\n" not in few.reason
    exact = Cost(8.0, 0.0, 4)
    assert (
        choose_estimator(10**6, fluctuation=costs["fluctuation"], response=exact).value
        == "response"
    )
    with pytest.raises(ValueError, match="cost of response is .* longer pilot"):
        choose_estimator(3, fluctuation=costs["fluctuation"], response=Cost(0.0, 1.0, 1))
    with pytest.raises(ValueError, match="cost of fluctuation"):
        choose_estimator(3, fluctuation=Cost(1.0, float("nan"), 1), response=exact)
    with pytest.raises(ValueError, match="num_queries is 0"):
        choose_estimator(0, **costs)
