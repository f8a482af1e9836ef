"""Random numbers: streams that share nothing, saved and restored exactly, orders of items."""

from __future__ import annotations

from itertools import combinations
from typing import get_args

import pytest
import torch
from torch import Tensor

from bif.sampling.rng import BlockNoise, Purpose, ShuffledOrder, generator

CPU = torch.device("cpu")
PURPOSES: tuple[Purpose, ...] = get_args(Purpose)


def stream(seed: int, block: int, purpose: Purpose, counter: int = 0, size: int = 4000) -> Tensor:
    source = generator(seed, block, purpose, device=CPU, counter=counter)
    return torch.randn(size, generator=source, dtype=torch.float64)


def test_a_generator_depends_on_its_arguments_only():
    before = stream(3, 1, "noise")
    kept = torch.get_rng_state()
    torch.manual_seed(99)
    torch.randn(5)
    again = stream(3, 1, "noise")
    torch.set_rng_state(kept)
    assert torch.equal(before, again)


def test_making_a_generator_leaves_the_global_one_alone():
    before = torch.get_rng_state()
    generator(0, 0, "noise", device=CPU)
    assert torch.equal(torch.get_rng_state(), before)


def test_seeds_blocks_purposes_and_counters_have_uncorrelated_streams():
    size = 4000
    streams = [
        stream(seed, block, purpose, counter, size)
        for seed in (0, 1, 11)
        for block in (0, 1, 10)
        for purpose in PURPOSES
        for counter in (0, 1)
    ]
    correlation = torch.corrcoef(torch.stack(streams))
    others = correlation[~torch.eye(len(streams), dtype=torch.bool)]
    # 2,556 pairs, each of standard deviation 1/sqrt(size): six of them leave a chance of 1e-5.
    assert others.abs().max() < 6 / size**0.5


def test_arguments_that_read_alike_when_joined_have_streams_of_their_own():
    seeds = {
        generator(seed, block, "noise", device=CPU, counter=counter).initial_seed()
        for seed, block, counter in ((1, 11, 0), (11, 1, 0), (1, 1, 10), (1, 1, 1), (111, 0, 0))
    }
    assert len(seeds) == 5


def noise_of(seed: int, masks: dict[str, Tensor] | None = None) -> BlockNoise:
    return BlockNoise(generator(seed, 0, "noise", device=CPU), masks)


LIKE = {"a": torch.empty(6, 3, 500), "b": torch.empty(6, 400, dtype=torch.float64)}


def test_noise_is_standard_normal_in_the_shapes_and_dtypes_asked_for():
    noise = noise_of(0).normal(LIKE)
    for name, leaf in noise.items():
        assert leaf.shape == LIKE[name].shape
        assert leaf.dtype == LIKE[name].dtype
        size = leaf.numel()
        # Standard errors of the mean, of the second and of the fourth moment of N(0, 1).
        assert abs(leaf.mean()) < 5 / size**0.5
        assert abs((leaf**2).mean() - 1) < 5 * (2 / size) ** 0.5
        assert abs((leaf**4).mean() - 3) < 5 * (96 / size) ** 0.5


def test_chains_of_a_block_and_calls_have_uncorrelated_noise():
    source = noise_of(0)
    first, second = source.normal(LIKE)["a"].flatten(1), source.normal(LIKE)["a"].flatten(1)
    size = first.shape[1]
    correlation = torch.corrcoef(torch.cat([first, second]))
    for i, j in combinations(range(12), 2):
        assert abs(correlation[i, j]) < 5 / size**0.5


def test_noise_is_zero_where_the_mask_forbids_and_unchanged_elsewhere():
    mask = torch.rand(3, 500, generator=torch.Generator().manual_seed(0)) < 0.3
    whole, masked = noise_of(5).normal(LIKE), noise_of(5, {"a": mask}).normal(LIKE)
    assert torch.equal(masked["a"], whole["a"] * mask)
    assert torch.equal(masked["b"], whole["b"])


def test_noise_is_restored_to_the_last_bit():
    source = noise_of(0)
    source.normal({"odd": torch.empty(7)})
    saved = source.state()
    expected = [source.normal(LIKE) for _ in range(3)]
    other = noise_of(1)
    other.restore(saved)
    for step in expected:
        again = other.normal(LIKE)
        assert all(torch.equal(again[name], step[name]) for name in LIKE)


def test_a_saved_state_is_not_moved_by_later_numbers():
    source = noise_of(0)
    saved = source.state()
    kept = saved.clone()
    source.normal(LIKE)
    assert torch.equal(saved, kept)
    assert not torch.equal(source.state(), kept)


def order_of(seed: int = 0, *, num_items: int = 10, batch_size: int = 3, block: int = 0):
    return ShuffledOrder(num_items, batch_size, num_chains=4, seed=seed, block=block, device=CPU)


def test_batches_have_a_row_of_valid_items_for_every_chain():
    indices = order_of().indices(0)
    assert indices.shape == (4, 3)
    assert indices.dtype == torch.long
    assert indices.min() >= 0
    assert indices.max() < 10


def test_no_item_comes_twice_in_an_epoch_and_the_incomplete_batch_is_dropped():
    order = order_of()
    for epoch in range(3):
        seen = torch.cat([order.indices(3 * epoch + i) for i in range(3)], dim=1)
        for row in seen:
            assert len(row.unique()) == 9


def test_an_epoch_of_whole_batches_visits_every_item_once():
    order = order_of(batch_size=5)
    seen = torch.cat([order.indices(step) for step in (0, 1)], dim=1)
    assert torch.equal(seen.sort(dim=1).values, torch.arange(10).expand(4, 10))


def test_a_batch_of_all_items_is_a_permutation():
    assert torch.equal(
        order_of(batch_size=10).indices(7).sort(dim=1).values, torch.arange(10).expand(4, 10)
    )


def test_chains_epochs_blocks_and_seeds_have_orders_of_their_own():
    def first_epoch(**arguments: int) -> Tensor:
        return order_of(num_items=50, batch_size=50, **arguments).indices(0)

    orders = [*first_epoch(), *first_epoch(block=1), *first_epoch(seed=1)]
    orders += [*order_of(num_items=50, batch_size=50).indices(1)]
    # Two random orders of 50 items agree in 1 place on average; 11 or more has a chance of 1e-8.
    for one, other in combinations(orders, 2):
        assert (one == other).sum() < 11


def test_the_step_alone_tells_the_batch():
    whole = order_of()
    sequence = [whole.indices(step).clone() for step in range(10)]
    for step in (8, 2, 9, 0):
        assert torch.equal(order_of().indices(step), sequence[step])
        assert torch.equal(whole.indices(step), sequence[step])


def test_every_item_is_equally_likely_in_a_batch():
    order = ShuffledOrder(12, 4, num_chains=3000, seed=0, block=0, device=CPU)
    # One batch an epoch, so that counts are of independent batches.
    counts = sum(torch.bincount(order.indices(3 * e).flatten(), minlength=12) for e in range(4))
    assert isinstance(counts, Tensor)
    draws, chance = 4 * 3000, 4 / 12
    error = (draws * chance * (1 - chance)) ** 0.5
    assert ((counts - draws * chance).abs() < 5 * error).all()


def mean_over_batches(values: Tensor, indices: Tensor) -> Tensor:
    return values[indices].mean(dim=1)


def test_batches_without_replacement_have_the_smaller_variance_of_the_theory():
    n, size, num_chains = 12, 4, 20_000
    values = torch.randn(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    order = ShuffledOrder(n, size, num_chains=num_chains, seed=0, block=0, device=CPU)
    squares = (mean_over_batches(values, order.indices(0)) - values.mean()) ** 2
    expected = values.var(correction=0) / size * (1 - size / n) * n / (n - 1)
    error = squares.std() / num_chains**0.5
    assert (squares.mean() - expected).abs() < 5 * error
    # The mutant: batches with replacement.
    source = torch.Generator().manual_seed(1)
    repeated = torch.randint(n, (num_chains, size), generator=source)
    squares = (mean_over_batches(values, repeated) - values.mean()) ** 2
    with pytest.raises(AssertionError):
        assert (squares.mean() - expected).abs() < 5 * squares.std() / num_chains**0.5


@pytest.mark.parametrize("batch_size", [0, 11])
def test_a_batch_size_out_of_range_is_refused(batch_size: int):
    with pytest.raises(ValueError, match=f"batch_size is {batch_size} for 10 items"):
        order_of(batch_size=batch_size)
