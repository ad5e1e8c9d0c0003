/* The lists at the right, and the card of the mask in the making. */

import { positive } from "./raster.js";
import { colour, shape } from "./shapes.js";

const BLUE = [61, 139, 255]; // of the mask in the making

const by = (id) => document.getElementById(id);

export class Panel extends EventTarget {
  #rows = new Map();
  #session = null;
  #picture = null;
  #drawn = null;

  constructor() {
    super();
    by("name").addEventListener("input", (event) => this.#tell("name", event.target.value));
    by("accept").addEventListener("click", () => this.#tell("do", "accept"));
    by("discard").addEventListener("click", () => this.#tell("do", "escape"));
    this.candidates = [...by("candidates").children];
    this.candidates.forEach((button, n) => button.addEventListener("click", () => this.#tell("choose", n)));
  }

  /** Show another image. */
  open(session, picture) {
    this.#session = session;
    this.#picture = picture;
    this.#drawn = null;
    this.#rows.clear();
  }

  /** Show nothing. */
  close() {
    this.open(null, null);
    this.#making(null, null, null, false);
    for (const name of ["proposals", "masks"]) {
      by(name).replaceChildren();
      by(`${name}-count`).textContent = "";
    }
  }

  /** Show what is so by now.
   *
   * @param marked The mask or proposal that keys are about.
   */
  update(marked) {
    const { state, mask, rows, proposals, busy } = this.#session;
    this.#making(state, mask, marked, busy);
    const items = [["proposals", proposals], ["masks", [...rows].reverse()]];
    for (const [name, list] of items) {
      const made = list.map((item) => this.#row(item)), there = by(name).children;
      // Only where something changed: an element that is put where it was loses the focus.
      if (made.length !== there.length || made.some((element, n) => element !== there[n])) by(name).replaceChildren(...made);
      by(`${name}-count`).textContent = list.length;
    }
    by("proposals-part").hidden = !proposals.length && !this.waiting;
    by("proposals-wait").hidden = !this.waiting;
    by("masks-none").hidden = rows.length > 0;
    const seen = new Set([...rows, ...proposals].map((item) => this.#key(item)));
    for (const key of this.#rows.keys()) if (!seen.has(key)) this.#rows.delete(key);
    this.mark(marked);
  }

  /** Show which one keys are about. */
  mark(marked) {
    const key = marked && this.#key(marked);
    for (const [own, element] of this.#rows) {
      const pick = element.querySelector(".pick");
      if (own === key) pick.setAttribute("aria-current", "true");
      else pick.removeAttribute("aria-current");
    }
    if (key) this.#rows.get(key)?.scrollIntoView({ block: "nearest" });
    if (!this.#session?.state) this.#phrase(marked);
  }

  /** The names that a field offers. */
  names(all) {
    if (by("names").children.length === all.length) return; // none is ever taken away
    by("names").replaceChildren(...all.map((name) => Object.assign(document.createElement("option"), { value: name })));
  }

  #phrase(marked) {
    const field = by("name"), can = Boolean(this.#session?.state || marked?.segmentation);
    field.disabled = !can;
    const phrase = this.#session?.state?.phrase ?? marked?.phrase ?? "";
    if (document.activeElement !== field || !can) field.value = phrase;
  }

  #making(state, mask, marked, busy) {
    by("making").classList.toggle("empty", !state);
    by("accept").disabled = !mask?.box;
    by("discard").disabled = !state;
    by("making-state").textContent = state ? (busy ? "Asking the model …" : `${mask.area.toLocaleString("en")} px`) : busy ? "Asking the model …" : "Nothing yet";
    this.#phrase(marked);
    const candidates = state?.candidates ?? [];
    this.candidates.forEach((button, n) => {
      const candidate = candidates[n];
      button.disabled = !candidate || candidates.length < 2;
      button.setAttribute("aria-pressed", String(candidates.length > 1 && state.chosen === n));
      button.querySelector("span").textContent = candidate ? percent(candidate.score) : "–";
    });
    if (this.#drawn !== candidates) {
      this.#drawn = candidates;
      this.candidates.forEach((button, n) => this.#sketch(button.querySelector("canvas"), candidates[n], candidates));
    }
  }

  /** The part of the image that any candidate is in, as [x0, y0, x1, y1], of the shape of a small picture. */
  #part(candidates, shape) {
    const { grid, size: [rows, columns] } = this.#session;
    let [x0, y0, x1, y1] = [columns, rows, 0, 0];
    for (const { logits, side } of candidates) {
      const box = positive(logits, side);
      if (!box) continue;
      const across = ((grid.frame / side) * columns) / grid.inside[1], down = ((grid.frame / side) * rows) / grid.inside[0];
      [x0, y0] = [Math.min(x0, box[0] * across), Math.min(y0, box[1] * down)];
      [x1, y1] = [Math.max(x1, box[2] * across), Math.max(y1, box[3] * down)];
    }
    if (x1 <= x0) [x0, y0, x1, y1] = [0, 0, columns, rows];
    const wide = Math.max(x1 - x0, (y1 - y0) * shape, 8) * 1.25, high = wide / shape;
    const x = inside((x0 + x1) / 2, wide, columns), y = inside((y0 + y1) / 2, high, rows);
    return [x - wide / 2, y - high / 2, x + wide / 2, y + high / 2];
  }

  /** A candidate as a small picture, straight from its logits. */
  #sketch(canvas, candidate, candidates) {
    const context = prepared(canvas), { width, height } = canvas;
    if (!candidate) return;
    const { grid, size: [rows, columns] } = this.#session, { logits, side } = candidate;
    const [x0, y0, x1] = this.#part(candidates, width / height), k = (x1 - x0) / width;
    context.setTransform(1 / k, 0, 0, 1 / k, -x0 / k, -y0 / k);
    context.drawImage(this.#picture, 0, 0);
    const picture = context.getImageData(0, 0, width, height);
    const cell = (place, n, out) => Math.floor(((place / out) * grid.inside[n] * side) / grid.frame);
    for (let y = 0, i = 0; y < height; y++) {
      const down = y0 + (y + 0.5) * k, row = cell(down, 0, rows);
      for (let x = 0; x < width; x++, i += 4) {
        const right = x0 + (x + 0.5) * k, inside = right >= 0 && down >= 0 && right < columns && down < rows;
        if (!inside) continue;
        const within = logits[row * side + cell(right, 1, columns)] > 0;
        for (let channel = 0; channel < 3; channel++) {
          const value = picture.data[i + channel];
          picture.data[i + channel] = within ? 0.35 * value + 0.65 * BLUE[channel] : 0.55 * value + 0.45 * 128;
        }
      }
    }
    context.putImageData(picture, 0, 0);
  }

  #key(item) {
    return item.segmentation ? `${item.id} ${item.revision} ${item.phrase ?? ""}` : item.id;
  }

  #row(item) {
    const key = this.#key(item);
    if (!this.#rows.has(key)) this.#rows.set(key, this.#made(item));
    return this.#rows.get(key);
  }

  #made(item) {
    const mask = Boolean(item.segmentation);
    const element = by(mask ? "mask-row" : "proposal-row").content.firstElementChild.cloneNode(true);
    const { box, path, area: pixels } = shape((item.segmentation ?? item).counts, this.#session.size);
    const name = element.querySelector(".name");
    name.textContent = item.phrase || (mask ? "Unnamed" : `${percent(item.predicted_iou)} sure`);
    name.classList.toggle("muted", mask && !item.phrase);
    const whose = item.provenance?.person;
    element.querySelector(".about").textContent = `${pixels.toLocaleString("en")} px${whose && whose !== this.person ? ` · ${whose}` : ""}`;
    thumbnail(element.querySelector("canvas"), this.#picture, box, path, mask ? colour(item) : null);
    if (mask) element.style.setProperty("--own", colour(item));
    element.querySelector(".pick").addEventListener("click", () => this.#tell("pick", item));
    element.addEventListener("pointerenter", () => this.#tell("point", item));
    for (const button of element.querySelectorAll("[data-do]")) {
      button.addEventListener("click", () => this.#tell("act", { item, what: button.dataset.do }));
    }
    return element;
  }

  #tell(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}

/** A model's own estimate of an IoU, which may be a little above 1. */
const percent = (score) => `${Math.round(100 * Math.min(Math.max(score, 0), 1))} %`;

/** The middle of a window, moved so that the window shows nothing beside the image, where it is not larger than that. */
const inside = (middle, wide, side) => (wide < side ? Math.min(Math.max(middle, wide / 2), side - wide / 2) : side / 2);

/** A canvas cleared, with as many pixels as the screen gives it. */
function prepared(canvas) {
  const style = getComputedStyle(canvas), ratio = window.devicePixelRatio || 1;
  const side = (value, other) => Math.round((parseFloat(value) || other) * ratio);
  canvas.width = side(style.width, 40);
  canvas.height = side(style.height, 40);
  return canvas.getContext("2d", { willReadFrequently: true });
}

/** The part of a picture that a mask is in. */
function thumbnail(canvas, picture, [x0, y0, x1, y1], path, tint) {
  const side = 96, context = canvas.getContext("2d");
  canvas.width = canvas.height = side;
  const wide = Math.max(x1 - x0, y1 - y0, 8) * 1.25, k = side / wide;
  const x = inside((x0 + x1) / 2, wide, picture.width), y = inside((y0 + y1) / 2, wide, picture.height);
  context.setTransform(k, 0, 0, k, side / 2 - k * x, side / 2 - k * y);
  context.drawImage(picture, 0, 0);
  context.fillStyle = "rgb(0 0 0 / 0.45)";
  const others = new Path2D(path);
  others.rect(-1e5, -1e5, 2e5, 2e5);
  context.fill(others, "evenodd");
  context.strokeStyle = tint ?? "#fff";
  context.lineWidth = 4 / k;
  context.setLineDash(tint ? [] : [10 / k, 7 / k]);
  context.stroke(path);
}
