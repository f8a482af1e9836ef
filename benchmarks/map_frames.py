"""How smoothly the map's page moves: milliseconds between frames while it is dragged and zoomed.

Random items in ten clouds, with random pictures, in headless Chromium without a graphics card.

    python -m benchmarks.map_frames --out benchmarks/results
    python -m benchmarks.map_frames --out DIR --items 2000 --width 400
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from benchmarks.common import parser, print_table, write
from bif.kernel import ItemMap
from bif.report.map_source import Frame

CLOUDS, NEIGHBOURS, SIDE = 10, 15, 28
"""Classes of the items, neighbours of each, and pixels of a picture's side."""
FRAMES = 150
"""Frames of each movement."""
LIMIT = 120.0
"""Seconds that the browser may take."""
FLAGS = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()

PROBE = """<!doctype html><body style="margin:0">
<iframe id="f" style="border:0;width:%dpx;height:1000px" src="/page"></iframe><script>
const f = document.getElementById("f"), began = performance.now();
const later = (ms) => new Promise((done) => setTimeout(done, ms));
const next = () => new Promise((done) => f.contentWindow.requestAnimationFrame(done));
f.onload = async () => {
  const d = f.contentDocument, w = f.contentWindow, over = d.getElementById("over"), out = {};
  out.loaded = performance.now() - began;
  await later(1000);
  const box = over.getBoundingClientRect();
  const at = {clientX: box.left + box.width / 2, clientY: box.top + box.height / 2};
  const pointer = (type, dx) => over.dispatchEvent(
    new w.PointerEvent(type, {...at, clientX: at.clientX + dx, pointerId: 1}));
  const wheel = (deltaY) => over.dispatchEvent(
    new w.WheelEvent("wheel", {...at, deltaY, cancelable: true}));
  const act = {
    drag: (n) => pointer("pointermove", 80 * Math.sin(n / 8)),
    zoom: (n) => wheel(n %% 100 < 50 ? -20 : 20),
  };
  for (const name of ["drag", "zoom"]) {
    const times = [], said = new Set();
    if (name === "drag") pointer("pointerdown", 0);
    for (let n = 0, last = await next(); n < %d; n++) {
      act[name](n);
      const now = await next();
      times.push(now - last);
      last = now;
      said.add(d.getElementById("status").textContent);
    }
    if (name === "drag") pointer("pointerup", 80);
    out[name] = {times, said: [...said]};
    await later(400);
  }
  await fetch("/found", {method: "POST", body: JSON.stringify(out)});
};
</script>"""


def clouds(num_items: int, seed: int) -> ItemMap:
    """Return a map of random items."""
    source = np.random.default_rng(seed)
    of_item = source.integers(CLOUDS, size=num_items)
    centres = source.uniform(-1, 1, (CLOUDS, 2))
    places = (centres[of_item] + 0.15 * source.normal(size=(num_items, 2))).astype(np.float32)
    near = source.integers(num_items, size=(num_items, NEIGHBOURS))
    values = np.sort(source.random(near.shape).astype(np.float32))[:, ::-1]
    losses, variances, kept = source.random((3, num_items))
    layouts = {"umap": places, "pca": places[:, ::-1]}
    frame = Frame("", layouts, near, values, losses, variances, kept, kept > 0.2)
    pictures = source.integers(256, size=(num_items, SIDE, SIDE), dtype=np.uint8)
    labels = {"label": [f"class {c}" for c in of_item]}
    ids = [f"item {i}" for i in range(num_items)]
    return ItemMap(ids, labels, "label", None, pictures, (frame,))


class Handler(BaseHTTPRequestHandler):
    """Serves the page and the probe, and takes what the probe has found."""

    def __init__(self, pages: dict[str, str], found: list[dict], *rest: Any) -> None:
        self.pages, self.found = pages, found
        super().__init__(*rest)

    def do_GET(self) -> None:
        content = self.pages.get(self.path, "").encode()
        self.send_response(200 if content else 404)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(content)

    def do_POST(self) -> None:
        self.found.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return


def ask_browser(pages: dict[str, str], *, flags: Sequence[str] = ()) -> dict[str, Any]:
    """Return what the script of `/probe` posts to `/found`, in headless Chromium.

    Args:
        pages: HTML by address.
        flags: Further flags of the browser.

    Raises:
        RuntimeError: There is no Chromium, or no answer in two minutes.
    """
    chromium = shutil.which("chromium")
    if chromium is None:
        raise RuntimeError("this needs chromium.")
    found: list[dict] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, pages, found))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/probe"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        own = [f"--user-data-dir={profile}", "--remote-debugging-port=0", *flags]
        browser = subprocess.Popen(
            [chromium, *FLAGS, *own, address], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        end = time.monotonic() + LIMIT
        while not found and time.monotonic() < end:
            time.sleep(0.02)
        browser.terminate()
        browser.wait()
    server.shutdown()
    server.server_close()
    if not found:
        raise RuntimeError(f"no answer from the browser after {LIMIT:.0f} seconds.")
    return found[0]


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--items", type=int, default=50_000)
    options.add_argument("--width", type=int, default=1400, help="pixels of the window")
    given = options.parse_args()
    page = clouds(given.items, given.seed).page()
    found = ask_browser(
        {"/page": page, "/probe": PROBE % (given.width, FRAMES)},
        flags=[f"--window-size={given.width},1000"],
    )
    rows = [
        {
            "movement": name,
            "median_ms": float(np.median(found[name]["times"])),
            "ms_95": float(np.percentile(found[name]["times"], 95)),
            "longest_ms": float(np.max(found[name]["times"])),
            "said": found[name]["said"],
        }
        for name in ("drag", "zoom")
    ]
    print_table([{key: row[key] for key in row if key != "said"} for row in rows])
    size, loaded = len(page.encode()) / 1e6, found["loaded"] / 1000
    said = dict.fromkeys(line for row in rows for line in row["said"])
    print(f"page: {size:.1f} MB, loaded in {loaded:.1f} s", *said, sep="; ")
    write("map-frames", given, rows, page_megabytes=size, seconds_to_load=loaded)


if __name__ == "__main__":
    main()
