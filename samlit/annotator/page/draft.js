/* The mask in the making: states that never change, so that undoing is going back to one. */

import { asLogits, axis, bounds, enlarged, paint } from "./raster.js";

/** A state with nothing in it.
 *
 * points [[x, y, 1 or 0]], box [x0, y0, x1, y1] and strokes [{path, radius, erase}] are in pixels of the image; candidates are
 * the model's answers to points and box, of which one is chosen; base is the mask that was there before, to be changed: as
 * {data, target: {id, revision} or null, proposal: its id or null}.
 */
export const EMPTY = Object.freeze({ points: [], box: null, strokes: [], candidates: [], chosen: 0, base: null, phrase: "" });

/** Where logits lie over an image: made once an image. */
export class Grid {
  #axes = new Map();

  /** @param size [rows, columns] of the image; frame, inside and low as `Decoding.image` gives them. */
  constructor(size, { frame, inside, low }) {
    Object.assign(this, { size, frame, inside, low });
  }

  /** The mask of some logits. */
  mask({ logits, side }) {
    if (!this.#axes.has(side)) {
      this.#axes.set(side, [0, 1].map((n) => axis(side, this.frame, this.inside[n], this.size[n])));
    }
    return enlarged(logits, ...this.#axes.get(side));
  }
}

/** The mask of a state: what the model says, or what was there, and over it what a person painted. */
export function drawn(state, size, grid) {
  const { candidates, chosen, base, strokes } = state;
  let data;
  if (candidates.length) data = grid.mask(candidates[chosen]);
  else data = base ? base.data.slice() : new Uint8Array(size[0] * size[1]);
  for (const stroke of strokes) paint(data, size, stroke);
  return measured(data, size);
}

/** A mask with its box (null where it is empty) and its pixels' number. */
export function measured(data, size) {
  const box = bounds(data, ...size), [x0, y0, x1, y1] = box ?? [0, 0, 0, 0];
  let area = 0;
  for (let y = y0; y < y1; y++) {
    for (let i = y * size[1] + x0; i < y * size[1] + x1; i++) area += data[i];
  }
  return { data, box, area };
}

/** What the model is asked for a state; `mask` is the state's.
 *
 * Three candidates are for a single prompt; any more is asked with the mask that there is, as SAM was trained.
 */
export function prompt(state, before, mask, grid) {
  let logits = null;
  if (before?.candidates.length && !before.strokes.length) logits = before.candidates[before.chosen].logits;
  else if (mask?.box) logits = asLogits(mask.data, grid.size, grid, grid.low);
  const count = state.points.length + (state.box ? 1 : 0);
  return { points: state.points, box: state.box, mask: logits, multimask: count === 1 && !logits };
}

/** A few clicks along a scribble. */
export function along(path, label, most = 5) {
  const lengths = [0];
  for (let n = 1; n < path.length; n++) {
    lengths.push(lengths[n - 1] + Math.hypot(path[n][0] - path[n - 1][0], path[n][1] - path[n - 1][1]));
  }
  const total = lengths.at(-1);
  return Array.from({ length: most }, (_, k) => {
    const wanted = ((k + 0.5) / most) * total;
    const n = Math.max(lengths.findIndex((length) => length >= wanted), 1);
    const share = (wanted - lengths[n - 1]) / (lengths[n] - lengths[n - 1] || 1);
    return [0, 1].map((side) => path[n - 1][side] + share * (path[n][side] - path[n - 1][side])).concat(label);
  });
}
