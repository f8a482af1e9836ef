"""A map as a parquet file, in the columns that embedding-atlas opens."""

from __future__ import annotations

import io

import numpy as np

from bif.extras import needs_extra
from bif.report.map_source import ItemMap

_LATER = {"text", "neighbors", "image"}
"""Names of columns that follow the labels', or that others may add."""


def map_table(shown: ItemMap) -> bytes:
    """Return the map's last frame as a parquet file.

    Columns are `id`, `x` and `y` by the first layout and `x_NAME`, `y_NAME` by others, `mean_loss`,
    `loss_variance`, `kept`, `stable`, the labels, `text`, and `neighbors`: for each item `ids`, the
    rows of its nearest, and `distances`, one minus the correlation.  A label whose name is taken is
    `label_NAME`.

    Source: the columns are those of `embedding-atlas FILE --x x --y y --neighbors neighbors`.
    """
    with needs_extra("maps", "A parquet file needs pyarrow"):
        import pyarrow as pa
        import pyarrow.parquet as pq

    frame = shown.frames[-1]
    columns: dict[str, pa.Array] = {"id": _texts(shown.ids)}
    for k, (name, places) in enumerate(frame.places.items()):
        for axis, letter in enumerate("xy"):
            of_layout = letter if k == 0 else f"{letter}_{name}"
            columns[of_layout] = pa.array(np.asarray(places[:, axis], np.float32))
    for name in ("mean_loss", "loss_variance", "kept"):
        columns[name] = pa.array(np.asarray(getattr(frame, name), np.float64))
    columns["stable"] = pa.array(frame.stable)
    for name, values in shown.labels.items():
        while name in {*columns, *_LATER}:
            name = f"label_{name}"
        columns[name] = _texts(values)
    if shown.texts is not None:
        columns["text"] = _texts(shown.texts)
    distances = 1 - np.asarray(frame.similarity, np.float32)
    columns["neighbors"] = pa.StructArray.from_arrays(
        [_lists(frame.neighbours.astype(np.int64)), _lists(distances)], ["ids", "distances"]
    )
    table = pa.table(columns).replace_schema_metadata({
        "trusted": str(not shown.failed_gates).lower(),
        "failed_gates": ", ".join(shown.failed_gates),
        "layout": shown.layouts[0], "frame": frame.name,
    })  # fmt: skip
    held = io.BytesIO()
    pq.write_table(table, held, compression="zstd")
    return held.getvalue()


def _texts(values: object) -> object:
    import pyarrow as pa

    # Halves of surrogate pairs are no UTF-8.
    plain = [str(v).encode("utf-8", "backslashreplace").decode() for v in values]  # type: ignore[attr-defined]
    return pa.array(plain, pa.string())


def _lists(values: np.ndarray) -> object:
    import pyarrow as pa

    starts = np.arange(0, values.size + 1, values.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(starts), pa.array(values.ravel()))
