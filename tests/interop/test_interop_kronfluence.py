import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bif.interop import read_kronfluence_scores


def matrix(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def metadata(folder, kind, size, indices=None):
    content = {"type": "TensorDataset", "dataset_size": size, "indices": indices}
    (folder / f"{kind}_dataset_metadata.json").write_text(json.dumps(content))


def arguments(folder, **given):
    content = {"data_partitions": 1, "module_partitions": 1, **given}
    (folder / "score_arguments.json").write_text(json.dumps(content))


def part(d, m):
    return f"pairwise_scores_data_partition{d}_module_partition{m}.safetensors"


def whole(folder, tensor, **tensors):
    save_file({"all_modules": tensor, **tensors}, folder / "pairwise_scores.safetensors")


def test_scores_come_with_their_sign_turned(tmp_path):
    scores = matrix(2, 5)
    whole(tmp_path, scores)
    expected = -scores.double().numpy()
    for path in (tmp_path, str(tmp_path), tmp_path / "pairwise_scores.safetensors"):
        found = read_kronfluence_scores(path)
        assert np.array_equal(found.scores, expected) and found.scores.dtype == np.float64
    assert found.query_ids is None and found.train_ids is None


def test_the_sign_is_that_of_the_bif_on_a_quadratic(tmp_path):
    # mean loss w²/2 at 0, H = 1: item of loss (w-1)²/2 has g = -1, the query the same. More of
    # the item pulls w to 1 and lowers the query's loss: negative here, +1 in kronfluence
    whole(tmp_path, torch.tensor([[(-1.0) * 1.0 * (-1.0)]]))
    assert read_kronfluence_scores(tmp_path).scores.item() == -1


def test_a_measurement_of_minus_the_observable_turns_the_sign_back(tmp_path):
    scores = matrix(2, 5)
    whole(tmp_path, scores)
    found = read_kronfluence_scores(tmp_path, measurement_sign=-1).scores
    assert np.array_equal(found, scores.double().numpy())


def test_scores_of_modules_are_summed(tmp_path):
    first, second = matrix(2, 5, seed=1), matrix(2, 5, seed=2)
    save_file({"fc1": first, "fc2": second}, tmp_path / "pairwise_scores.safetensors")
    expected = -(first.double() + second.double()).numpy()
    assert np.array_equal(read_kronfluence_scores(tmp_path).scores, expected)


def test_partitions_are_put_together_modules_added_and_data_side_by_side(tmp_path):
    parts = {(d, m): matrix(2, 3 - d, seed=10 * d + m) for d in range(2) for m in range(2)}
    for (d, m), tensor in parts.items():
        save_file({"all_modules": tensor}, tmp_path / part(d, m))
    arguments(tmp_path, data_partitions=2, module_partitions=2)
    sums = [(parts[d, 0].double() + parts[d, 1].double()) for d in range(2)]
    found = read_kronfluence_scores(tmp_path)
    assert np.array_equal(found.scores, -torch.cat(sums, dim=1).numpy())


def test_missing_partitions_are_named(tmp_path):
    save_file({"all_modules": matrix(2, 3)}, tmp_path / part(0, 0))
    arguments(tmp_path, data_partitions=2, module_partitions=1)
    with pytest.raises(
        ValueError, match="1 of 2 partitions are missing, the first is data part.* 1"
    ):
        read_kronfluence_scores(tmp_path)
    (tmp_path / "score_arguments.json").unlink()
    save_file({"all_modules": matrix(2, 3)}, tmp_path / part(1, 1))
    with pytest.raises(ValueError, match="2 of 4 partitions are missing"):
        read_kronfluence_scores(tmp_path)
    with pytest.raises(ValueError, match="is one partition of the scores; pass the folder"):
        read_kronfluence_scores(tmp_path / part(0, 0))


@pytest.mark.parametrize("number", [0, -1, "2", None, 2.0, 10**12])
def test_numbers_of_partitions_that_cannot_be_are_refused(tmp_path, number):
    save_file({"all_modules": matrix(2, 3)}, tmp_path / part(0, 0))
    arguments(tmp_path, data_partitions=number)
    with pytest.raises(ValueError, match="where a number from 1 on belongs|are missing"):
        read_kronfluence_scores(tmp_path)


def test_partitions_of_other_shapes_are_refused(tmp_path):
    save_file({"all_modules": matrix(2, 3)}, tmp_path / part(0, 0))
    save_file({"all_modules": matrix(3, 3)}, tmp_path / part(1, 0))
    with pytest.raises(ValueError, match=r"data partitions have \[2, 3\] queries"):
        read_kronfluence_scores(tmp_path)
    (tmp_path / part(1, 0)).rename(tmp_path / part(0, 1))
    with pytest.raises(ValueError, match="module partitions of data partition 0 have shapes"):
        read_kronfluence_scores(tmp_path)


def test_scores_of_tokens_are_refused_or_summed(tmp_path):
    scores = matrix(2, 5, 4)
    whole(tmp_path, scores)
    with pytest.raises(ValueError, match=r"scores of single tokens, \(2, 5, 4\)"):
        read_kronfluence_scores(tmp_path)
    found = read_kronfluence_scores(tmp_path, tokens="sum").scores
    assert found == pytest.approx(-scores.double().sum(dim=2).numpy(), abs=1e-14)


def test_indices_of_the_data_sets_become_ids(tmp_path):
    whole(tmp_path, matrix(2, 3))
    metadata(tmp_path, "query", 2)
    metadata(tmp_path, "train", 100, [40, 7, 9])
    found = read_kronfluence_scores(tmp_path)
    assert found.query_ids == ("0", "1") and found.train_ids == ("40", "7", "9")
    aligned = found.aligned(query_ids=["1"], train_ids=["9", "40"])
    assert np.array_equal(aligned, found.scores[1:, [2, 0]])


def test_data_sets_of_another_size_are_refused(tmp_path):
    whole(tmp_path, matrix(2, 3))
    for size, indices in ((4, None), (9, [1, 2]), (9, "abc"), (9, 3)):
        metadata(tmp_path, "train", size, indices)
        with pytest.raises(ValueError, match="have 3 train items, but train_dataset_metadata.json"):
            read_kronfluence_scores(tmp_path)


def test_aggregated_queries_are_one_row_and_aggregated_train_items_are_refused(tmp_path):
    whole(tmp_path, matrix(1, 3))
    metadata(tmp_path, "query", 50)
    arguments(tmp_path, aggregate_query_gradients=True)
    assert read_kronfluence_scores(tmp_path).query_ids is None
    arguments(tmp_path, aggregate_train_gradients=True)
    with pytest.raises(ValueError, match="no item has a score"):
        read_kronfluence_scores(tmp_path)


def test_the_metadata_of_a_file_on_its_own_tell_of_aggregation(tmp_path):
    save_file(
        {"all_modules": matrix(2, 1)},
        tmp_path / "moved.safetensors",
        metadata={"aggregate_train_gradients": "True"},
    )
    with pytest.raises(ValueError, match="no item has a score"):
        read_kronfluence_scores(tmp_path / "moved.safetensors")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_read(tmp_path, dtype):
    scores = matrix(2, 3).to(dtype)
    whole(tmp_path, scores)
    assert np.array_equal(read_kronfluence_scores(tmp_path).scores, -scores.double().numpy())


def test_what_is_not_there_or_no_score_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no pairwise_scores.safetensors and no partitions"):
        read_kronfluence_scores(tmp_path)
    (tmp_path / "pairwise_scores.safetensors").write_bytes(b"not tensors")
    with pytest.raises(ValueError, match="is no safetensors file"):
        read_kronfluence_scores(tmp_path)
    whole(tmp_path, matrix(2, 3), other=matrix(2, 4))
    with pytest.raises(ValueError, match="expected one shape"):
        read_kronfluence_scores(tmp_path)
    whole(tmp_path, matrix(3))
    with pytest.raises(ValueError, match=r"\[Q, N\] or \[Q, N, T\]"):
        read_kronfluence_scores(tmp_path)
    with pytest.raises(ValueError, match="measurement_sign is 0"):
        read_kronfluence_scores(tmp_path, measurement_sign=0)  # type: ignore[arg-type]


def test_scores_that_are_not_finite_are_refused(tmp_path):
    scores = matrix(2, 3)
    scores[1, 2] = float("nan")
    whole(tmp_path, scores)
    with pytest.raises(ValueError, match="1 of 6 scores are NaN or infinite.*query 1, item 2"):
        read_kronfluence_scores(tmp_path)
