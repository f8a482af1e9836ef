// Points in the plane. They are set pixel by pixel, so that 50,000 move smoothly where there is no
// graphics card; what is said about them (names, lines, a lasso) is a second canvas above.
const makeStage = (base, over, calls) => {
  const CLICK = 4, REACH = 14, FULL_MS = 20, AIM_MS = 12, REST_MS = 160;
  const context = base.getContext("2d", {alpha: false}), above = over.getContext("2d");
  let count = 0, xs, ys, order, shades, strength, ratio = 1, wide = 1, high = 1, image, pixels;
  let view = {x: 0, y: 0, scale: 1}, fitted = 1, ground = [255, 255, 255];
  let grid, asked = false, fullMs = 0, movedAt = -1e9, lasso = null, lassoMode = false, thinned = 1;
  const pointers = new Map();
  let press = null;

  const toScreen = (x, y) => [wide / 2 + (x - view.x) * view.scale, high / 2 - (y - view.y) * view.scale];
  const toPlane = (px, py) => [view.x + (px - wide / 2) / view.scale, view.y - (py - high / 2) / view.scale];

  const resize = () => {
    const box = over.getBoundingClientRect();
    if (!box.width || !box.height) return;
    const zoom = view.scale / fitted;
    [wide, high, ratio] = [box.width, box.height, Math.min(2, window.devicePixelRatio || 1)];
    for (const canvas of [base, over]) {
      canvas.width = Math.round(wide * ratio);
      canvas.height = Math.round(high * ratio);
    }
    image = context.createImageData(base.width, base.height);
    pixels = new Uint32Array(image.data.buffer);
    fitted = 0.46 * Math.min(wide, high);
    view.scale = fitted * zoom;
    request();
  };

  // Which items lie in each cell of a grid over the plane, -1 to 1 each way.
  const makeGrid = () => {
    const side = Math.max(1, Math.ceil(Math.sqrt(count / 2))), start = new Uint32Array(side * side + 1);
    const clamp = (v) => Math.min(side - 1, Math.max(0, Math.floor((v + 1) / 2 * side)));
    const cell = new Uint32Array(count);
    for (let i = 0; i < count; i++) start[(cell[i] = clamp(ys[i]) * side + clamp(xs[i])) + 1]++;
    for (let c = 0; c < side * side; c++) start[c + 1] += start[c];
    const at = start.slice(), items = new Uint32Array(count);
    for (let i = 0; i < count; i++) items[at[cell[i]]++] = i;
    grid = {side, start, items, clamp};
  };
  const nearest = (px, py, reach) => {
    const [x, y] = toPlane(px, py), r = reach / view.scale;
    let best = -1, least = r * r;
    for (let row = grid.clamp(y - r); row <= grid.clamp(y + r); row++) {
      for (let column = grid.clamp(x - r); column <= grid.clamp(x + r); column++) {
        const c = row * grid.side + column;
        for (let k = grid.start[c]; k < grid.start[c + 1]; k++) {
          const i = grid.items[k], d = (xs[i] - x) ** 2 + (ys[i] - y) ** 2;
          if (d < least) [best, least] = [i, d];
        }
      }
    }
    return best;
  };

  // The items in view, or null where there are more than so many.
  const within = (most) => {
    const [left, top] = toPlane(0, 0), [right, bottom] = toPlane(wide, high), found = [];
    for (let row = grid.clamp(bottom); row <= grid.clamp(top); row++) {
      for (let column = grid.clamp(left); column <= grid.clamp(right); column++) {
        const c = row * grid.side + column;
        for (let k = grid.start[c]; k < grid.start[c + 1]; k++) {
          const i = grid.items[k];
          if (xs[i] < left || xs[i] > right || ys[i] < bottom || ys[i] > top) continue;
          if (found.length === most) return null;
          found.push(i);
        }
      }
    }
    return found;
  };

  const radius = () => {
    const size = Math.min(5, Math.max(1.2, 0.19 * Math.min(wide, high) / Math.sqrt(count || 1)));
    return Math.min(9, size * Math.min(2.5, Math.max(1, view.scale / fitted) ** 0.35));
  };
  // The pixels of a disc with how much of each it covers, of 256.
  const disc = (r) => {
    const reach = Math.ceil(r), found = [];
    for (let y = -reach; y <= reach; y++) {
      for (let x = -reach; x <= reach; x++) {
        const covered = Math.min(1, Math.max(0, r + 0.5 - Math.hypot(x, y)));
        if (covered > 0.02) found.push([x, y, Math.round(256 * covered)]);
      }
    }
    return found;
  };
  const drawPoints = (step) => {
    const W = base.width, H = base.height, scale = view.scale * ratio;
    pixels.fill((255 << 24 | ground[2] << 16 | ground[1] << 8 | ground[0]) >>> 0);
    const r = radius() * ratio, reach = Math.ceil(r), dots = disc(r), many = dots.length;
    const offset = new Int32Array(many), covered = new Int32Array(many);
    dots.forEach(([x, y, c], k) => { offset[k] = y * W + x; covered[k] = c; });
    const left = W / 2 - view.x * scale, top = H / 2 + view.y * scale;
    for (let n = 0; n < count; n += step) {
      const i = order[n], px = (left + xs[i] * scale) | 0, py = (top - ys[i] * scale) | 0;
      if (px < reach || py < reach || px >= W - reach || py >= H - reach) continue;
      const at = py * W + px, colour = shades[i], own = strength[i];
      const red = colour & 0xff00ff, green = colour & 0x00ff00;
      for (let k = 0; k < many; k++) {
        const a = (covered[k] * own) >> 8, b = 256 - a, j = at + offset[k], there = pixels[j];
        pixels[j] = 0xff000000
          | ((Math.imul(red, a) + Math.imul(there & 0xff00ff, b)) >>> 8) & 0xff00ff
          | ((Math.imul(green, a) + Math.imul(there & 0x00ff00, b)) >>> 8) & 0x00ff00;
      }
    }
    context.putImageData(image, 0, 0);
  };

  const frame = () => {
    asked = false;
    if (!count || !pixels) return;
    const before = performance.now(), moving = before - movedAt < REST_MS;
    const step = moving && fullMs > FULL_MS ? Math.ceil(fullMs / AIM_MS) : 1;
    drawPoints(step);
    if (step === 1) fullMs = performance.now() - before;
    if (step !== thinned) calls.thinned(thinned = step);
    above.setTransform(ratio, 0, 0, ratio, 0, 0);
    above.clearRect(0, 0, wide, high);
    calls.drawn(above, {radius: radius(), at: toScreen, room: wide * high});
    if (lasso && lasso.length > 1) {
      above.beginPath();
      lasso.forEach(([x, y], k) => (k ? above.lineTo(x, y) : above.moveTo(x, y)));
      above.closePath();
      above.setLineDash([5, 4]);
      above.strokeStyle = calls.ink();
      above.lineWidth = 1.5;
      above.stroke();
      above.setLineDash([]);
    }
    if (step > 1) setTimeout(request, REST_MS);
  };
  const request = () => {
    if (!asked) { asked = true; requestAnimationFrame(frame); }
  };
  const move = (change) => { change(); movedAt = performance.now(); request(); };
  const zoomAt = (px, py, factor) => move(() => {
    const [x, y] = toPlane(px, py);
    view.scale = Math.min(400 * fitted, Math.max(0.5 * fitted, view.scale * factor));
    view.x = x - (px - wide / 2) / view.scale;
    view.y = y + (py - high / 2) / view.scale;
  });
  const pan = (dx, dy) => move(() => { view.x -= dx / view.scale; view.y += dy / view.scale; });
  const fit = () => move(() => { view = {x: 0, y: 0, scale: fitted}; });
  const centre = (i) => move(() => {
    view.scale = Math.max(view.scale, 2 * fitted);
    [view.x, view.y] = [xs[i], ys[i]];
  });

  const inside = (path, x, y) => {
    let within = false;
    for (let a = 0, b = path.length - 1; a < path.length; b = a++) {
      const [ax, ay] = path[a], [bx, by] = path[b];
      if (ay > y !== by > y && x < (bx - ax) * (y - ay) / (by - ay) + ax) within = !within;
    }
    return within;
  };
  const place = (event) => {
    const box = over.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  over.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    const at = place(event);
    pointers.set(event.pointerId, at);
    try { over.setPointerCapture(event.pointerId); } catch { /* a pointer made by a script */ }
    press = pointers.size === 1 ? {at, moved: false} : null;
    lasso = pointers.size === 1 && (lassoMode || event.shiftKey) ? [at] : null;
  });
  over.addEventListener("pointermove", (event) => {
    const at = place(event), last = pointers.get(event.pointerId);
    if (!last) { calls.hover(nearest(...at, REACH), at); return; }
    pointers.set(event.pointerId, at);
    if (press && Math.hypot(at[0] - press.at[0], at[1] - press.at[1]) > CLICK) press.moved = true;
    if (pointers.size === 2) {
      const other = [...pointers].find(([id]) => id !== event.pointerId)[1];
      const far = (p) => Math.max(1, Math.hypot(p[0] - other[0], p[1] - other[1]));
      zoomAt((at[0] + other[0]) / 2, (at[1] + other[1]) / 2, far(at) / far(last));
      pan((at[0] - last[0]) / 2, (at[1] - last[1]) / 2);
    } else if (lasso) {
      lasso.push(at);
      request();
    } else if (press && press.moved) {
      pan(at[0] - last[0], at[1] - last[1]);
      calls.hover(-1, at);
    }
  });
  const release = (event, kept) => {
    const at = pointers.get(event.pointerId);
    pointers.delete(event.pointerId);
    if (!at) return;
    if (kept && lasso && lasso.length > 2) {
      const found = [];
      for (let i = 0; i < count; i++) if (inside(lasso, ...toScreen(xs[i], ys[i]))) found.push(i);
      calls.lasso(found);
    } else if (kept && press && !press.moved) {
      calls.pick(nearest(...at, REACH));
    }
    [press, lasso] = [null, null];
    request();
  };
  over.addEventListener("pointerup", (event) => release(event, true));
  over.addEventListener("pointercancel", (event) => release(event, false));
  over.addEventListener("pointerleave", () => calls.hover(-1, [0, 0]));
  over.addEventListener("dblclick", (event) => zoomAt(...place(event), 2));
  over.addEventListener("wheel", (event) => {
    // At the smallest scale the page scrolls on.
    if (event.deltaY > 0 && view.scale <= 0.5 * fitted) return;
    event.preventDefault();
    const lines = event.deltaMode === 1 ? 16 : 1;
    zoomAt(...place(event), Math.exp(-Math.max(-300, Math.min(300, event.deltaY * lines)) / 400));
  }, {passive: false});
  const KEYS = {
    ArrowLeft: () => pan(60, 0), ArrowRight: () => pan(-60, 0), ArrowUp: () => pan(0, 60), ArrowDown: () => pan(0, -60),
    "+": () => zoomAt(wide / 2, high / 2, 1.4), "=": () => zoomAt(wide / 2, high / 2, 1.4),
    "-": () => zoomAt(wide / 2, high / 2, 1 / 1.4), 0: fit,
    Enter: () => calls.pick(nearest(wide / 2, high / 2, Math.hypot(wide, high))),
  };
  over.addEventListener("keydown", (event) => {
    const act = !event.ctrlKey && !event.metaKey && !event.altKey && KEYS[event.key];
    if (act) { event.preventDefault(); act(); }
  });
  new ResizeObserver(resize).observe(over);

  return {
    fit, centre, request, toScreen, within,
    zoom: (factor) => zoomAt(wide / 2, high / 2, factor),
    setPlaces: (x, y) => { [xs, ys, count] = [x, y, x.length]; makeGrid(); request(); },
    setShades: (colours, weights, sequence, behind) => {
      [shades, strength, order, ground] = [colours, weights, sequence, behind];
      request();
    },
    setLasso: (on) => { lassoMode = on; over.classList.toggle("lasso", on); },
  };
};
