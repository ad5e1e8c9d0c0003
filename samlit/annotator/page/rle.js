/* Masks as COCO's compressed strings: column-major runs, zeros first (SAM_SPEC 4). A mask here is a Uint8Array of
   rows x columns, row by row, 1 inside. */

/** The lengths of the runs in a string. */
export function runs(counts) {
  const found = [];
  let at = 0;
  while (at < counts.length) {
    let value = 0, shift = 0, more = true;
    while (more) {
      const digit = counts.charCodeAt(at++) - 48;
      value += (digit & 31) * 2 ** shift; // no <<: a run may be longer than 31 bits hold
      shift += 5;
      more = (digit & 32) !== 0;
      if (!more && digit & 16) value -= 2 ** shift;
    }
    if (found.length > 2) value += found[found.length - 2];
    found.push(value);
  }
  return found;
}

/** The mask of a string. */
export function decode(counts, [rows, columns]) {
  const mask = new Uint8Array(rows * columns);
  let place = 0;
  runs(counts).forEach((length, number) => {
    if (number % 2) {
      for (let i = place; i < place + length; i++) mask[(i % rows) * columns + Math.floor(i / rows)] = 1;
    }
    place += length;
  });
  return mask;
}

/** The string of a mask whose pixels all lie in the box [x0, y0, x1, y1] (x1 and y1 are outside). */
export function encode(mask, [rows, columns], [x0, y0, x1, y1]) {
  const lengths = [];
  let value = 0, begun = 0;
  const change = (place) => {
    lengths.push(place - begun);
    begun = place;
    value = 1 - value;
  };
  for (let x = x0; x < x1; x++) {
    for (let y = y0; y < y1; y++) {
      if (mask[y * columns + x] !== value) change(x * rows + y);
    }
    if (value && (y1 < rows || y0 > 0 || x === x1 - 1)) change(x * rows + y1);
  }
  if (begun < rows * columns) lengths.push(rows * columns - begun);
  return lengths.map((length, n) => digits(n > 2 ? length - lengths[n - 2] : length)).join("");
}

function digits(value) {
  let text = "";
  for (;;) {
    const digit = value & 31;
    value >>= 5;
    const more = !(value === 0 && !(digit & 16)) && !(value === -1 && digit & 16);
    text += String.fromCharCode(48 + digit + (more ? 32 : 0));
    if (!more) return text;
  }
}
