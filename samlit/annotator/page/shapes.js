/* Outlines of masks, made once each, and their colours. */

import { loops, path } from "./outline.js";
import { bounds } from "./raster.js";
import { decode, runs } from "./rle.js";

const known = new Map();

/** The outline of a mask as {path: Path2D, box, area}, by its string.
 *
 * @param counts COCO's string.
 * @param size [rows, columns].
 */
export function shape(counts, size) {
  const key = `${size} ${counts}`;
  if (!known.has(key)) {
    if (known.size > 2000) known.clear();
    const data = decode(counts, size);
    const area = runs(counts).reduce((sum, length, number) => sum + (number % 2 ? length : 0), 0);
    known.set(key, { ...outlined(data, size, bounds(data, ...size)), area });
  }
  return known.get(key);
}

/** The outline of a mask that is at hand; the box holds all of it, and is null where it is empty. */
export function outlined(data, size, box) {
  return { path: box ? path(loops(data, size[1], box)) : new Path2D(), box: box ?? [0, 0, 0, 0] };
}

/** Colours that are told from each other, and from most photos, also by those who see red and green alike. */
const COLOURS = ["#ffb000", "#2fc6ff", "#ff6a3d", "#7ce38b", "#f58bd3", "#ffe45c", "#a48bff", "#2ee6c8", "#ff8a95", "#b6d43a"];

/** The colour of a mask: by its place among the image's, so that it is the same each time and its neighbours' are others. */
export const colour = ({ place }) => COLOURS[place % COLOURS.length];
