/* What the mouse, the pen or a finger means on the canvas. */

import { paint, snapped } from "./raster.js";

const STILL = 4; // CSS pixels within which a press is a click, and beyond which it is a line or a box

export class Pointer extends EventTarget {
  #canvas;
  #view;
  #press = null;
  #corner = null; // the first one of a box that is made by keys
  #space = false;

  /** @param canvas The element; view what it shows. `tool` is "click", "box", "brush" or "eraser". */
  constructor(canvas, view) {
    super();
    this.#canvas = canvas;
    this.#view = view;
    Object.assign(this, { tool: "click", size: 24, place: null });
    canvas.addEventListener("pointerdown", (event) => this.#down(event));
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    canvas.addEventListener("pointerup", (event) => this.#up(event));
    canvas.addEventListener("pointercancel", () => this.cancel());
    canvas.addEventListener("pointerleave", () => this.#at(null));
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    addEventListener("keydown", (event) => event.code === "Space" && this.#holding(true));
    addEventListener("keyup", (event) => event.code === "Space" && this.#holding(false));
    addEventListener("blur", () => this.#holding(false));
  }

  get painting() {
    return this.tool === "brush" || this.tool === "eraser";
  }

  /** Take up a tool. */
  use(tool) {
    this.cancel();
    this.tool = tool;
    this.#shown();
  }

  /** Make the brush `size` pixels of the image across. */
  resize(size) {
    this.size = Math.min(Math.max(Math.round(size), 1), 512);
    this.#shown();
  }

  /** Forget the press that is under way. Returns whether there was one. */
  cancel() {
    const was = this.#press !== null || this.#corner !== null;
    this.#press = this.#corner = null;
    this.#view.gesture = null;
    this.#view.paint();
    return was;
  }

  /** Move the place by keys, CSS pixels. */
  nudge(dx, dy) {
    const view = this.#view, { clientWidth: width, clientHeight: height } = this.#canvas;
    const [x, y] = this.place ? [view.x + this.place[0] * view.scale, view.y + this.place[1] * view.scale] : [width / 2, height / 2];
    const edge = 48, within = (value, most) => Math.min(Math.max(value, edge), most - edge);
    const [nx, ny] = [within(x + dx, width), within(y + dy, height)];
    view.pan(nx - x - dx, ny - y - dy); // what would be out of sight is brought into it
    const [rows, columns] = view.session.size, place = view.at(nx, ny);
    this.#at([Math.min(Math.max(place[0], 0), columns - 0.01), Math.min(Math.max(place[1], 0), rows - 0.01)], true);
  }

  /** What a press at the place means, for who works by keys. */
  press(label) {
    if (!this.place) return;
    if (this.tool === "box") this.#cornered(this.place);
    else if (!this.painting) this.#tell("click", { point: [...this.place, label] });
    else this.#tell("stroke", { stroke: this.#stroke([this.#snap(this.place)], this.tool === "eraser") });
  }

  /** A box by keys: first one corner, then the one across. */
  #cornered(place) {
    const first = this.#corner;
    this.#corner = first ? null : place;
    this.#view.gesture = first ? null : { box: this.#rectangle(place, place) };
    if (first) this.#boxed(this.#rectangle(first, place));
    this.#view.paint();
  }

  #holding(whether) {
    const typing = document.activeElement?.matches("input, textarea, button, summary, a, dialog");
    this.#space = whether && !typing;
    this.#canvas.classList.toggle("grab", this.#space);
  }

  #wheel(event) {
    event.preventDefault();
    const lines = event.deltaMode === 1 ? 16 : 1;
    this.#view.zoom(Math.exp(-event.deltaY * lines * (event.ctrlKey ? 0.01 : 0.0016)), event.offsetX, event.offsetY);
  }

  #down(event) {
    if (!this.#view.session || this.#press) return;
    if (this.#corner) this.cancel();
    this.#canvas.focus({ preventScroll: true });
    this.#canvas.setPointerCapture(event.pointerId);
    const place = this.#view.at(event.offsetX, event.offsetY);
    const press = { from: [event.offsetX, event.offsetY], last: [event.offsetX, event.offsetY], path: [place], moved: false };
    press.negative = event.button === 2 || event.altKey;
    if (event.button === 1 || this.#space) press.kind = "pan";
    else if (event.button !== 0 && event.button !== 2) return;
    else if (this.painting) press.kind = "stroke";
    else press.kind = this.tool === "box" || event.shiftKey ? "box" : "click";
    if (event.button === 1) event.preventDefault();
    this.#press = press;
    if (press.kind === "stroke") this.#begin(press, place);
  }

  #move(event) {
    const view = this.#view, place = view.at(event.offsetX, event.offsetY), press = this.#press;
    if (!press) return this.#at(place);
    if (!view.session) return this.cancel();
    press.moved ||= Math.hypot(event.offsetX - press.from[0], event.offsetY - press.from[1]) > STILL;
    if (press.kind === "pan") {
      view.pan(event.offsetX - press.last[0], event.offsetY - press.last[1]);
      press.last = [event.offsetX, event.offsetY];
    } else if (press.kind === "stroke") {
      const events = event.getCoalescedEvents?.() ?? [];
      for (const one of events.length ? events : [event]) this.#go(press, view.at(one.offsetX, one.offsetY));
    } else if (press.moved) {
      press.path.push(place);
      if (press.kind === "box") view.gesture = { box: this.#rectangle(press.path[0], place) };
      else view.gesture = { path: press.path, label: press.negative ? 0 : 1 };
    }
    this.#at(place);
  }

  #up(event) {
    const press = this.#press, view = this.#view;
    if (!press || !view.session) return this.cancel();
    const place = view.at(event.offsetX, event.offsetY), label = press.negative ? 0 : 1;
    this.#press = null;
    if (press.kind === "stroke") this.#tell("stroke", { stroke: press.stroke });
    else if (press.kind === "box" && press.moved) this.#boxed(this.#rectangle(press.path[0], place));
    else if (press.kind === "click" && press.moved) this.#scribbled(press.path, label);
    else if (press.kind === "click" && view.inside(press.path[0])) this.#tell("click", { point: [...press.path[0], label] });
    view.gesture = null;
    view.paint();
  }

  #boxed(box) {
    if (box[2] - box[0] >= 1 && box[3] - box[1] >= 1) this.#tell("box", { box });
  }

  #scribbled(path, label) {
    const kept = path.filter((place) => this.#view.inside(place));
    if (kept.length > 1) this.#tell("scribble", { path: kept, label });
  }

  #rectangle([ax, ay], [bx, by]) {
    const [rows, columns] = this.#view.session.size;
    const within = (value, most) => Math.min(Math.max(value, 0), most);
    return [
      within(Math.min(ax, bx), columns), within(Math.min(ay, by), rows),
      within(Math.max(ax, bx), columns), within(Math.max(ay, by), rows),
    ];
  }

  // The brush: what it paints is shown while it paints.

  #snap(place) {
    return snapped(place, this.size);
  }

  #stroke(path, erase) {
    return { path, radius: this.size / 2, erase };
  }

  #begin(press, place) {
    const { session } = this.#view, [rows, columns] = session.size;
    press.stroke = this.#stroke([this.#snap(place)], (this.tool === "eraser") !== press.negative);
    press.data = session.mask ? session.mask.data.slice() : new Uint8Array(rows * columns);
    press.box = session.mask?.box ?? null;
    this.#painted(press, 0);
  }

  #go(press, place) {
    const { path } = press.stroke, next = this.#snap(place), last = path.at(-1);
    if (next[0] === last[0] && next[1] === last[1]) return;
    path.push(next);
    this.#painted(press, path.length - 1);
  }

  #painted(press, from) {
    const { session } = this.#view, [rows, columns] = session.size;
    const { path, radius } = press.stroke, [x, y] = path.at(-1);
    paint(press.data, session.size, press.stroke, from);
    const [x0, y0, x1, y1] = press.box ?? [columns, rows, 0, 0];
    press.box = [ // holds all of the mask; how tight it is does not matter
      Math.max(Math.min(x0, Math.floor(x - radius)), 0), Math.max(Math.min(y0, Math.floor(y - radius)), 0),
      Math.min(Math.max(x1, Math.ceil(x + radius)), columns), Math.min(Math.max(y1, Math.ceil(y + radius)), rows),
    ];
    this.#view.gesture = { mask: { data: press.data, box: press.box }, stroke: press.stroke };
    this.#view.paint();
  }

  #at(place, keyboard = false) {
    this.place = place;
    this.keyboard = keyboard;
    if (this.#corner && place) this.#view.gesture = { box: this.#rectangle(this.#corner, place) };
    this.#shown();
    this.#tell("hover", {});
  }

  #shown() {
    const { place, painting } = this;
    this.#view.pointer = place && { place: painting ? this.#snap(place) : place, radius: painting ? this.size / 2 : 0, keyboard: this.keyboard };
    this.#view.paint();
  }

  #tell(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}
