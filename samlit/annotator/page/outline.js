/* The outline of a mask as closed loops along the edges of its pixels. */

const STEPS = [[1, 0], [0, 1], [-1, 0], [0, -1]]; // right, down, left, up: the mask is at the right hand

/** Loops of corners [x, y, x, y, ...] around a mask and, the other way round, around its holes.
 *
 * @param mask Uint8Array, row by row.
 * @param columns Of the mask.
 * @param box [x0, y0, x1, y1] that holds all of it.
 */
export function loops(mask, columns, [x0, y0, x1, y1]) {
  const wide = x1 - x0 + 1, high = y1 - y0 + 1;
  const open = new Uint8Array(wide * high); // of each corner: the directions in which an edge leaves it
  for (let y = y0; y <= y1; y++) {
    const row = y * columns, corners = (y - y0) * wide - x0, first = y === y0, last = y === y1;
    for (let x = x0, left = 0; x <= x1; x++) {
      const out = x === x1, here = out || last ? 0 : mask[row + x];
      if (here !== left) {
        if (here) open[corners + wide + x] |= 8;
        else open[corners + x] |= 2;
        left = here;
      }
      const above = out || first ? 0 : mask[row - columns + x];
      if (here !== above) {
        if (here) open[corners + x] |= 1;
        else open[corners + x + 1] |= 4;
      }
    }
  }
  const found = [];
  for (let start = 0; start < open.length; start++) {
    while (open[start]) {
      const loop = [];
      let corner = start, before = -1;
      do {
        const way = next(open[corner], before);
        open[corner] &= ~(1 << way);
        if (way !== before) loop.push((corner % wide) + x0, Math.floor(corner / wide) + y0);
        before = way;
        corner += STEPS[way][0] + STEPS[way][1] * wide;
      } while (corner !== start);
      found.push(loop);
    }
  }
  return found;
}

/** Where two pixels touch at a corner alone, turn right: they are of two loops. */
function next(ways, before) {
  if (before >= 0 && ways & (ways - 1)) {
    const right = (before + 1) % 4;
    if (ways & (1 << right)) return right;
  }
  return 31 - Math.clz32(ways & -ways);
}

/** Loops as a path to fill or stroke. */
export function path(found) {
  const made = new Path2D();
  for (const loop of found) {
    made.moveTo(loop[0], loop[1]);
    for (let i = 2; i < loop.length; i += 2) made.lineTo(loop[i], loop[i + 1]);
    made.closePath();
  }
  return made;
}
