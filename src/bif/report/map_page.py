"""The interactive map of items, as one page that loads nothing."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from bif.report.map_source import Frame, ItemMap
from bif.report.markup import count, escape, percent, plural
from bif.report.page import assemble_page
from bif.report.palette import QUANTITY, UNSTABLE, class_colours
from bif.report.sprites import Sprites, pack_pictures

_SCRIPTS = ("map_data.js", "map_canvas.js", "map_colours.js", "map_panel.js", "map.js")
"""In their order; the first is strict, and so all are."""
MOST_BYTES = 60_000_000
"""Of the page."""
_FOR_WORDS = 20_000
"""Bytes for what is said of pictures, and for the elements that hold them."""
_TEXT_BYTES = 12_000_000
"""Characters of all texts, which are cut where there are more."""
_LONGEST, _SHORTEST = 2000, 80
"""Characters of a text at most, and those it keeps in any case."""
_MOST_CLASSES = 256
"""Classes of a label by which items are coloured; of more, colours tell nothing."""
_INT16_MAX = 32767
"""The largest int16, to which places and correlations are scaled."""


def render_map(shown: ItemMap) -> str:
    """Return the interactive page of a map, at most 60 MB.

    Pictures shrink, or are left out, where they do not fit, and long texts are cut; the page says
    so.

    Raises:
        ValueError: The items alone take more.
        ImportError: Pillow is missing, and there are pictures.
    """
    texts, cut = _cut(shown.texts)
    data = _data(shown, texts)
    page = _assemble(shown, data, None, [cut])
    room = MOST_BYTES - len(page.encode()) - _FOR_WORDS
    if room < 0:
        raise ValueError(
            f"the map of {plural(len(shown), 'item')} at {plural(len(shown.frames), 'checkpoint')} "
            f"takes {len(page) / 1e6:.1f} MB, above {MOST_BYTES / 1e6:.1f}: map fewer of either."
        )
    if shown.pictures is None:
        return page
    sprites = pack_pictures(shown.pictures, most_bytes=room)
    return _assemble(shown, data | {"sprites": sprites.layout()}, sprites, [cut, sprites.note])


def _assemble(
    shown: ItemMap, data: dict[str, Any], sprites: Sprites | None, notes: Sequence[str]
) -> str:
    from bif import __version__

    return assemble_page(
        script=_SCRIPTS,
        styles=("style.css", "map.css"),
        manifest={"versions": {"bif": __version__}},
        warnings=_untrusted(shown),
        headline=_headline(shown),
        trust="",
        sections=[
            _TOOL, _facts(shown), _how_to_read(shown, [note for note in notes if note]),
            f'<script type="application/json" id="map-data">{_json(data)}</script>',
            _sheets(sprites),
        ],
        title="Map of the loss kernel",
        eyebrow="Bayesian influence: map of the loss kernel",
    )  # fmt: skip


def _data(shown: ItemMap, texts: Sequence[str] | None) -> dict[str, Any]:
    """Return all that the script draws, arrays as base64."""
    labels = [_label(name, values) for name, values in shown.labels.items()]
    names = list(shown.labels)
    several = len(shown.frames) > 1
    return {
        "ids": [str(name) for name in shown.ids],
        "labels": labels,
        "by": None if shown.by is None else names.index(shown.by),
        "texts": texts,
        "layouts": shown.layouts,
        "frames": [_frame(frame) for frame in shown.frames],
        "count": int(shown.frames[0].neighbours.shape[1]),
        "others": [
            {"name": name, "count": int(found.shape[1]), "neighbours": _positions(found)}
            for name, found in shown.others.items()
        ],
        "settled": _positions(shown.settled(), len(shown)) if several else None,
        "quantity": QUANTITY,
        "unstable": UNSTABLE,
        "sprites": None,
    }  # fmt: skip


def _label(name: str, values: Sequence[str]) -> dict[str, Any]:
    names, codes = np.unique(np.asarray(values, dtype=object).astype(str), return_inverse=True)
    coloured = 2 <= len(names) <= _MOST_CLASSES
    return {
        "name": name, "names": [str(x) for x in names], "codes": _positions(codes, len(codes)),
        "colours": class_colours(len(names)) if coloured else None,
    }  # fmt: skip


def _frame(frame: Frame) -> dict[str, Any]:
    return {
        "name": frame.name,
        "places": [_scaled(places) for places in frame.places.values()],
        "neighbours": _positions(frame.neighbours),
        "similarity": _base64(np.round(_INT16_MAX * frame.similarity.clip(-1, 1)).astype("<i2")),
        "loss": _base64(frame.mean_loss.astype("<f4")),
        "variance": _base64(frame.loss_variance.astype("<f4")),
        "kept": _base64(frame.kept.astype("<f4")),
        "stable": _base64(frame.stable.astype(np.uint8)),
    }


def _scaled(places: np.ndarray) -> str:
    """Return places that fill -1 to 1 in the wider direction."""
    low, high = places.min(axis=0), places.max(axis=0)
    wide = max(float((high - low).max()) / 2, 1e-12)
    unit = (places - (low + high) / 2) / wide
    return _base64(np.round(_INT16_MAX * unit.clip(-1, 1)).astype("<i2"))


def _positions(found: np.ndarray, num_items: int | None = None) -> str:
    """Return positions among so many items, in as few bytes as they need."""
    most = len(found) if num_items is None else num_items
    return _base64(found.astype("<u4" if most > 65535 else "<u2"))


def _base64(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()


def _json(content: Any) -> str:
    """Return JSON in UTF-8 that cannot end its element."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return text.encode("utf-8", "replace").decode().replace("<", "\\u003c")


def _cut(texts: Sequence[str] | None) -> tuple[list[str] | None, str]:
    """Return texts that are short enough, and what is to be said of it."""
    if texts is None:
        return None, ""
    most = int(np.clip(_TEXT_BYTES / max(1, len(texts)), _SHORTEST, _LONGEST))
    longer = sum(len(text) > most for text in texts)
    note = f"{plural(longer, 'text')} cut after {most:,} characters." if longer else ""
    return [text if len(text) <= most else f"{text[:most]}…" for text in texts], note


def _sheets(sprites: Sprites | None) -> str:
    return "\n".join(
        f'<script type="text/plain" id="sheet-{k}">{sheet}</script>'
        for k, sheet in enumerate(sprites.sheets if sprites else ())
    )


def _headline(shown: ItemMap) -> str:
    several = len(shown.frames)
    over = f" over {plural(several, 'checkpoint')} of a training" if several > 1 else ""
    return (
        f"<h1>{plural(len(shown), 'item')} as the model sees them{over}</h1>"
        f'<p class="lead">{escape(_of_labels(shown))}Items are near if their losses rise and '
        "fall together as the trained weights are changed a little.</p>"
    )


def _of_labels(shown: ItemMap) -> str:
    """Return how many neighbours share an item's label, beside chance; empty without labels."""
    if shown.by is None:
        return ""
    labels = np.asarray(shown.labels[shown.by], dtype=object).astype(str)
    neighbours = shown.frames[-1].neighbours
    shared = (labels[neighbours] == labels[:, None]).mean()
    sizes = np.unique(labels, return_counts=True)[1].astype(float)
    chance = (sizes * (sizes - 1)).sum() / (len(labels) * max(1, len(labels) - 1))
    return (
        f"Of an item's {neighbours.shape[1]} nearest items {percent(shared)} share its {shown.by} "
        f"({percent(chance)} by chance). "
    )


def _facts(shown: ItemMap) -> str:
    frame, first = shown.frames[-1], shown.layouts[0]
    rows = {
        "Items": count(len(shown)),
        "Neighbours of an item": count(frame.neighbours.shape[1]),
        "Items without stable neighbours": count((~frame.stable).sum()),
    }
    by_chance = percent(frame.by_chance) if frame.by_chance >= 0.005 else "below 1 %"
    chance = f" <small>chance {by_chance}</small>"
    shares = {
        "Kept between halves of the chains": frame.kept.mean(),
        f"Neighbours that {first.upper()} shows": shown.figures.get(f"{first}_shows_neighbours"),
        "Kept by UMAP of another seed": shown.figures.get("umap_keeps_neighbours"),
    }
    rows |= {name: percent(x) + chance for name, x in shares.items() if x is not None}
    cells = (f"<div><dt>{escape(name)}</dt><dd>{value}</dd></div>" for name, value in rows.items())
    return f'<dl class="trust">{"".join(cells)}</dl>'


def _untrusted(shown: ItemMap) -> str:
    if not shown.failed_gates:
        return ""
    return (
        '<div class="warnings"><strong>This run is not trusted</strong> '
        f"({escape(', '.join(shown.failed_gates))}). What is near here may be near by noise alone."
        "</div>"
    )


_TOOL = """<noscript><p class="warnings">The map is drawn by a script, and scripts are off.</p>
</noscript><section id="map-tool" aria-label="Map" hidden><div class="controls">
<label>Colour <select id="colour"></select></label>
<div class="choice"><span id="layouts-name">Layout</span>
<div class="group" id="layouts" role="group" aria-labelledby="layouts-name"></div></div>
<label>Find <input type="search" id="find" placeholder="id, label or text" autocomplete="off">
</label><div class="choice"><span>View</span><div class="group">
<button type="button" id="out" aria-label="Zoom out">−</button>
<button type="button" id="in" aria-label="Zoom in">+</button>
<button type="button" id="fit">Fit</button>
<button type="button" id="lasso" aria-pressed="false">Lasso</button></div></div>
<label id="at-slider" hidden><span>Checkpoint <output id="at-name"></output></span>
<input type="range" id="at" min="0" value="0" step="1"></label>
<label class="check"><input type="checkbox" id="grey" checked> Grey where neighbours are not stable
</label></div><div class="map"><div class="stage"><canvas id="points" aria-hidden="true"></canvas>
<canvas id="over" tabindex="0" role="application" aria-label="Map of items. Arrow keys move, plus
and minus zoom, Enter chooses the item in the middle."></canvas><div id="tip" hidden></div>
<p id="status"></p></div><div id="side"><div class="panel" id="legend"></div>
<div class="panel" id="panel"></div></div></div><p id="said" role="status" class="under"></p>
<template id="hint"><h2>No item is chosen</h2><p>Press an item to see it and its nearest items.
Drag to move, turn the wheel to zoom. Draw a lasso, or hold <kbd>Shift</kbd> while dragging, to list
items.</p><p>Keys on the map: arrows, <kbd>+</kbd>, <kbd>−</kbd>, <kbd>0</kbd> for all,
<kbd>Enter</kbd> for the item in the middle. <kbd>/</kbd> finds, <kbd>L</kbd> is the lasso,
<kbd>Esc</kbd> clears.</p></template></section>"""


def _how_to_read(shown: ItemMap, notes: Sequence[str]) -> str:
    about = {
        "Neighbours": "Lists are nearest items in the kernel itself, by the correlation of losses, "
        "and not in the plane, which cannot show all of them.",
        "Grey": "Chains are split into two halves. An item is grey if the halves share no more of "
        "its neighbours than by chance: then its place may be noise.",
        "Distance": "UMAP keeps neighbours. How far clusters are apart says little in it; in PCA "
        "it is the part of the distance that two directions show.",
    }
    if len(shown.frames) > 1:
        about["Checkpoints"] = (
            "Each has a layout of its own, turned to fit the one before. The figures below "
            "the map are of the last."
        )
    if notes:
        about["Shortened"] = " ".join(notes)
    rows = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in about.items())
    return (
        '<section aria-labelledby="read"><h2 id="read">How to read the map</h2>'
        f'<dl class="notes">{rows}</dl></section>'
    )
