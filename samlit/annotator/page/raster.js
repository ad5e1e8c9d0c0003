/* Low-res logits to a mask of the image's own size, and strokes of a brush, exact to the pixel. */

/** What one side of an image is made of: output row i is the sum of 4 taps of the low-res logits.
 *
 * The Predictor enlarges the logits to the frame, cuts off what is padding, and resizes to the image, each time
 * bilinear. Both are linear along each side by itself, so they are one map here.
 *
 * @param low Side of the logits, cells.
 * @param frame Side of the model's frame, pixels.
 * @param inside Rows (or columns) of the frame that hold picture.
 * @param out Rows (or columns) of the image.
 */
export function axis(low, frame, inside, out) {
  const first = new Int32Array(out), taps = new Float64Array(4 * out);
  for (let i = 0; i < out; i++) {
    const outer = pair(i, inside, out, inside);
    const inner = outer.map(([j]) => pair(j, low, frame, low));
    first[i] = Math.min(inner[0][0][0], Math.max(low - 4, 0));
    outer.forEach(([, much], n) => {
      for (const [cell, share] of inner[n]) taps[4 * i + cell - first[i]] += much * share;
    });
  }
  return { first, taps, low };
}

/** The two neighbours that a pixel of a bilinear resize is mixed from, with their shares. */
function pair(i, from, to, most) {
  const place = Math.max(((i + 0.5) * from) / to - 0.5, 0);
  const floor = Math.min(Math.floor(place), most - 1);
  return [[floor, 1 - (place - floor)], [Math.min(floor + 1, most - 1), place - floor]];
}

/** The mask where logits (low x low) are above 0, with two `axis`: of rows, of columns. */
export function enlarged(logits, rows, columns) {
  const low = rows.low, height = rows.first.length, width = columns.first.length;
  const mask = new Uint8Array(height * width);
  const box = positive(logits, low);
  if (!box) return mask;
  const [left, top, right, bottom] = box;
  const [y0, y1] = touched(rows, top, bottom), [x0, x1] = touched(columns, left, right);
  const line = new Float64Array(low + 4);
  for (let y = y0; y < y1; y++) {
    for (let c = 0; c < low; c++) {
      let sum = 0;
      for (let k = 0; k < 4; k++) {
        const share = rows.taps[4 * y + k];
        if (share) sum += share * logits[(rows.first[y] + k) * low + c];
      }
      line[c] = sum;
    }
    for (let x = x0; x < x1; x++) {
      const f = columns.first[x], t = 4 * x, taps = columns.taps;
      const value = taps[t] * line[f] + taps[t + 1] * line[f + 1] + taps[t + 2] * line[f + 2] + taps[t + 3] * line[f + 3];
      if (value > 0) mask[y * width + x] = 1;
    }
  }
  return mask;
}

/** The rows of an axis that look at any of the cells from `begin` to before `end`. */
function touched({ first }, begin, end) {
  let from = 0, to = first.length;
  while (from < to && first[from] + 3 < begin) from++;
  while (to > from && first[to - 1] >= end) to--;
  return [from, to];
}

/** The box [x0, y0, x1, y1] of a mask, x1 and y1 outside of it, or null where nothing is inside. */
export function bounds(mask, rows, columns) {
  const first = mask.indexOf(1);
  if (first < 0) return null;
  const y0 = Math.floor(first / columns), y1 = Math.floor(mask.lastIndexOf(1) / columns) + 1;
  let x0 = columns, x1 = 0;
  for (let y = y0; y < y1; y++) {
    const line = mask.subarray(y * columns, (y + 1) * columns), left = line.indexOf(1);
    if (left < 0) continue;
    if (left < x0) x0 = left;
    x1 = Math.max(x1, line.lastIndexOf(1) + 1);
  }
  return [x0, y0, x1, y1];
}

/** The same of low-res logits (side x side): of where they are above 0. */
export const positive = (logits, side) => bounds(Uint8Array.from(logits, (value) => (value > 0 ? 1 : 0)), side, side);

/** Logits of a mask that came without any, as SAM's mask prompt takes them: +-10 by how much of a cell is inside. */
export function asLogits(mask, [rows, columns], { frame, inside }, low) {
  const sums = new Float32Array(low * low), counts = new Float32Array(low * low);
  const cellOf = (i, side, out) => Math.min(Math.floor((((i + 0.5) * side) / out) * (low / frame)), low - 1);
  const across = Int32Array.from({ length: columns }, (_, x) => cellOf(x, inside[1], columns));
  for (let y = 0; y < rows; y++) {
    const start = cellOf(y, inside[0], rows) * low;
    for (let x = 0; x < columns; x++) {
      sums[start + across[x]] += mask[y * columns + x];
      counts[start + across[x]]++;
    }
  }
  if (rows < low || columns < low) return sampled(mask, [rows, columns], { frame, inside }, low);
  return sums.map((sum, cell) => (counts[cell] ? (2 * sum) / counts[cell] - 1 : -1) * 10);
}

/** The same where the image is smaller than the logits: each cell looks at the pixel in its middle. */
function sampled(mask, [rows, columns], { frame, inside }, low) {
  return Float32Array.from({ length: low * low }, (_, cell) => {
    const y = Math.floor((((Math.floor(cell / low) + 0.5) * frame) / low / inside[0]) * rows);
    const x = Math.floor(((((cell % low) + 0.5) * frame) / low / inside[1]) * columns);
    return y < rows && x < columns && mask[y * columns + x] ? 10 : -10;
  });
}

/** Where a brush that is `size` pixels across sits: on a pixel's middle, or between pixels, so that it never wobbles. */
export function snapped([x, y], size) {
  return size % 2 ? [Math.floor(x) + 0.5, Math.floor(y) + 0.5] : [Math.round(x), Math.round(y)];
}

/** Draw a stroke into a mask: all pixels whose middle is within the radius of its path.
 *
 * @param from The first place of the path that is new.
 */
export function paint(mask, [rows, columns], { path, radius, erase }, from = 0) {
  const value = erase ? 0 : 1, reach = radius * radius + 1e-9;
  for (let n = Math.max(from - 1, 0); n < path.length; n++) {
    const [ax, ay] = path[n], [bx, by] = path[Math.min(n + 1, path.length - 1)];
    const dx = bx - ax, dy = by - ay, length = dx * dx + dy * dy;
    const x0 = Math.max(Math.floor(Math.min(ax, bx) - radius), 0), x1 = Math.min(Math.ceil(Math.max(ax, bx) + radius), columns);
    const y0 = Math.max(Math.floor(Math.min(ay, by) - radius), 0), y1 = Math.min(Math.ceil(Math.max(ay, by) + radius), rows);
    for (let y = y0; y < y1; y++) {
      for (let x = x0; x < x1; x++) {
        const px = x + 0.5 - ax, py = y + 0.5 - ay;
        const along = length ? Math.min(Math.max((px * dx + py * dy) / length, 0), 1) : 0;
        const ex = px - along * dx, ey = py - along * dy;
        if (ex * ex + ey * ey <= reach) mask[y * columns + x] = value;
      }
    }
  }
}
