import numpy as np
import pytest

from bif.evaluate import compare, lds, predict, random_subsets


def case():
    """Scores of three methods [5, 20], masks [14, 20] and outcomes [2, 14, 5]."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(5, 20))
    masks = random_subsets(20, 14, seed=0)
    outcomes = predict(truth, masks).T + rng.normal(size=(2, 14, 5))
    scores = {"exact": truth, "noisy": truth + rng.normal(size=(5, 20)), "other": -truth}
    return scores, masks, outcomes


def test_every_difference_is_the_one_of_its_pair_to_the_last_bit():
    scores, masks, outcomes = case()
    settings = {"num_bootstrap": 50, "confidence": 0.8, "seed": 7}
    _, found = compare(scores, masks, outcomes, against="noisy", **settings)
    assert list(found) == ["exact", "other"]
    for name, difference in found.items():
        pair = {key: scores[key] for key in ("noisy", name)}
        _, alone = compare(pair, masks, outcomes, against="noisy", **settings)
        assert alone == {name: difference}


def test_a_difference_is_that_of_two_lds():
    scores, masks, outcomes = case()
    _, found = compare(scores, masks, outcomes, against="exact")
    means = {name: lds(matrix, masks, outcomes).mean for name, matrix in scores.items()}
    for name in ("noisy", "other"):
        assert found[name].mean == pytest.approx(means[name] - means["exact"], abs=1e-12)
        assert found[name].ci_low <= found[name].mean <= found[name].ci_high


def test_errors_name_the_method_whose_scores_are_wrong():
    scores, masks, outcomes = case()
    scores["noisy"] = scores["noisy"][:, 1:]
    with pytest.raises(ValueError, match=r"noisy: scores have shape \(5, 19\)"):
        compare(scores, masks, outcomes, against="exact")


def test_share_of_the_ceiling_divides_and_is_unknown_without_one():
    scores, masks, outcomes = case()
    result = lds(scores["noisy"], masks, outcomes)
    assert result.share_of_ceiling == result.mean / result.ceiling
    assert np.isnan(lds(scores["noisy"], masks, outcomes[0]).share_of_ceiling)
    opposed = np.concatenate([outcomes[:1], -outcomes[:1]]) + 1e-3 * outcomes[1:]
    assert lds(scores["noisy"], masks, opposed).ceiling == 0
    assert np.isnan(lds(scores["noisy"], masks, opposed).share_of_ceiling)


def test_comparing_at_once_is_judging_each_alone_to_the_last_bit():
    scores, masks, outcomes = case()
    results, differences = compare(scores, masks, outcomes, against="noisy")
    for name, matrix in scores.items():
        alone = lds(matrix, masks, outcomes)
        found = results[name]
        assert (found.mean, found.ci_low, found.ci_high) == (
            alone.mean,
            alone.ci_low,
            alone.ci_high,
        )
        assert found.ceiling == alone.ceiling or found.ceiling != found.ceiling
    assert list(differences) == ["exact", "other"]
    assert compare(scores, masks, outcomes)[1] == {}


def test_comparing_with_one_that_is_not_there_is_refused():
    scores, masks, outcomes = case()
    with pytest.raises(ValueError, match="expected 'z' among them"):
        compare(scores, masks, outcomes, against="z")
