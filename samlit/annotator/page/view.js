/* Where the image lies on the screen, and all that is drawn over it: on two canvases, for the image is drawn anew only
   when it moves. */

import { colour, outlined, shape } from "./shapes.js";

const MOST = 64; // screen pixels for a pixel of the image

const SMOOTH = 12; // milliseconds that an outline may take while a brush moves

export class View extends EventTarget {
  #canvas;
  #context;
  #pictures = []; // the image, and each half as large as the one before, for views from afar
  #below;
  #stale = true; // whether the image has moved since it was drawn
  #frame = 0;
  #draft = { mask: null, shape: null };
  #cost = 0; // milliseconds that the outline of the mask in the making took

  /** @param canvas For what is drawn over the image; below it lies the one for the image, of the same size. */
  constructor(canvas, below) {
    super();
    this.#canvas = canvas;
    this.#context = canvas.getContext("2d");
    this.#below = below.getContext("2d");
    Object.assign(this, { scale: 1, x: 0, y: 0, session: null, hidden: false, gesture: null, preview: null, pointer: null });
    this.marked = null; // the mask or proposal that keys are about
    new ResizeObserver(() => this.#resize()).observe(canvas);
  }

  /** Show a session's image, all of it. */
  open(session, picture) {
    Object.assign(this, { session, preview: null, gesture: null, marked: null });
    this.#pictures = [picture];
    this.#halve(session);
    this.#draft = { mask: null, shape: null };
    this.#cost = 0;
    this.fit();
  }

  /** Make the smaller pictures: to shrink millions of pixels anew for each frame would be slow. */
  async #halve(session) {
    for (let last = this.#pictures[0]; last.width > 1200 && last.height > 2;) {
      const options = { resizeWidth: last.width >> 1, resizeHeight: last.height >> 1, resizeQuality: "high" };
      last = await createImageBitmap(last, options);
      if (this.session !== session) return;
      this.#pictures.push(last);
    }
    this.#moved();
  }

  /** Show nothing. */
  close() {
    Object.assign(this, { session: null, preview: null, gesture: null, marked: null });
    for (const context of [this.#context, this.#below]) context.reset();
  }

  get #ratio() {
    return window.devicePixelRatio || 1;
  }

  /** Lines and dots grow with the letters of the page. */
  get #unit() {
    return parseFloat(getComputedStyle(document.documentElement).fontSize) / 15;
  }

  get #fitting() {
    const [rows, columns] = this.session.size;
    const { clientWidth: width, clientHeight: height } = this.#canvas;
    const margin = Math.min(width, height) * 0.03;
    return Math.min((width - 2 * margin) / columns, (height - 2 * margin) / rows);
  }

  fit() {
    if (!this.session) return;
    const [rows, columns] = this.session.size;
    this.scale = this.#fitting;
    this.x = (this.#canvas.clientWidth - columns * this.scale) / 2;
    this.y = (this.#canvas.clientHeight - rows * this.scale) / 2;
    this.#moved();
  }

  /** Zoom about a place of the canvas, CSS pixels; its middle if not given. */
  zoom(factor, x = this.#canvas.clientWidth / 2, y = this.#canvas.clientHeight / 2) {
    if (!this.session) return;
    const scale = Math.min(Math.max(this.scale * factor, this.#fitting / 4), Math.max(MOST, this.#fitting));
    this.x = x - ((x - this.x) * scale) / this.scale;
    this.y = y - ((y - this.y) * scale) / this.scale;
    this.scale = scale;
    this.#moved();
  }

  pan(dx, dy) {
    if (!this.session) return;
    const [rows, columns] = this.session.size;
    const { clientWidth: width, clientHeight: height } = this.#canvas;
    const some = 40; // CSS pixels of the image stay in sight
    this.x = Math.min(Math.max(this.x + dx, some - columns * this.scale), width - some);
    this.y = Math.min(Math.max(this.y + dy, some - rows * this.scale), height - some);
    this.#moved();
  }

  /** Pixels of the image at a place of the canvas. */
  at(x, y) {
    return [(x - this.x) / this.scale, (y - this.y) / this.scale];
  }

  inside([x, y]) {
    const [rows, columns] = this.session?.size ?? [0, 0];
    return x >= 0 && y >= 0 && x < columns && y < rows;
  }

  /** The smallest of some masks at a place of the image. */
  hit(items, [x, y]) {
    let best = null, least = Infinity;
    for (const item of items) {
      const { path, area, box } = this.#shape(item);
      if (x < box[0] || x > box[2] || y < box[1] || y > box[3] || area >= least) continue;
      this.#context.resetTransform();
      if (this.#context.isPointInPath(path, x, y)) [best, least] = [item, area];
    }
    return best;
  }

  #shape(item) {
    return shape((item.segmentation ?? item).counts, this.session.size);
  }

  /** Draw again, with the next picture of the screen. */
  paint() {
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      if (this.session) this.#paint();
    });
  }

  #resize() {
    const { clientWidth: width, clientHeight: height } = this.#canvas;
    const [before, high] = [this.#canvas.width / this.#ratio, this.#canvas.height / this.#ratio];
    for (const canvas of [this.#canvas, this.#below.canvas]) {
      canvas.width = Math.round(width * this.#ratio);
      canvas.height = Math.round(height * this.#ratio);
    }
    this.#stale = true;
    if (!this.session) return;
    this.x += (width - before) / 2;
    this.y += (height - high) / 2;
    this.#paint();
  }

  #moved() {
    this.#stale = true;
    this.dispatchEvent(new Event("move"));
    this.paint();
  }

  #paint() {
    const c = this.#context, { session } = this;
    c.resetTransform();
    c.clearRect(0, 0, this.#canvas.width, this.#canvas.height);
    this.#place(c);
    if (this.#stale) this.#image();
    if (!this.hidden) {
      for (const row of session.rows) if (row.id !== session.state?.base?.target?.id) this.#mask(row);
      for (const proposal of session.proposals) this.#proposal(proposal);
      if (session.state || this.gesture?.mask) this.#making();
      else if (this.preview) this.#ghost(this.preview);
    }
    this.#prompts();
    this.#cursor();
  }

  /** Have a context draw in pixels of the image. */
  #place(context) {
    const k = this.#ratio;
    context.setTransform(k * this.scale, 0, 0, k * this.scale, k * this.x, k * this.y);
  }

  #image() {
    const c = this.#below, [rows, columns] = this.session.size;
    c.reset();
    this.#place(c);
    const wide = columns * this.scale * this.#ratio;
    const picture = this.#pictures.findLast((one) => one.width >= wide) ?? this.#pictures[0];
    c.imageSmoothingEnabled = wide < 6 * columns; // from near by each pixel is a square
    c.imageSmoothingQuality = picture.width > 2 * wide ? "high" : "low";
    c.drawImage(picture, 0, 0, columns, rows);
    this.#stale = false;
  }

  /** Lines are as wide on the screen however near the image is. */
  #line(width, style, dash = []) {
    const c = this.#context, k = this.#unit / this.scale;
    c.lineWidth = width * k;
    c.strokeStyle = style;
    c.setLineDash(dash.map((length) => length * k));
    c.lineJoin = "round";
  }

  #outline(path, style, width = 1.75, dash = []) {
    this.#line(width + (dash.length ? 1 : 1.75), `rgb(0 0 0 / ${dash.length ? 0.4 : 0.55})`);
    this.#context.stroke(path);
    this.#line(width, style, dash);
    this.#context.stroke(path);
  }

  #fill(path, style, alpha) {
    this.#context.globalAlpha = alpha;
    this.#context.fillStyle = style;
    this.#context.fill(path, "evenodd");
    this.#context.globalAlpha = 1;
  }

  #mask(row) {
    const { path } = this.#shape(row), marked = this.marked?.id === row.id;
    const quiet = this.session.state !== null;
    this.#fill(path, colour(row), marked ? 0.5 : quiet ? 0.12 : 0.28);
    this.#context.globalAlpha = quiet && !marked ? 0.6 : 1;
    this.#outline(path, marked ? "#fff" : colour(row), marked ? 2.5 : 1.5);
    this.#context.globalAlpha = 1;
  }

  #proposal(proposal) {
    const { path } = this.#shape(proposal), marked = this.marked?.id === proposal.id;
    if (marked) this.#fill(path, "#fff", 0.28);
    this.#context.globalAlpha = this.session.state ? 0.45 : 1;
    this.#outline(path, "#fff", marked ? 2.5 : 1.25, marked ? [8, 4] : [5, 4]);
    this.#context.globalAlpha = 1;
  }

  #making() {
    const { mask, size } = this.session, painted = this.gesture?.mask;
    const slow = painted && this.#cost > SMOOTH; // then the stroke is a line over the mask until it is ended
    const shown = slow ? mask : painted ?? mask;
    if (!shown) this.#draft = { mask: null, shape: null };
    else if (this.#draft.mask !== shown) {
      const begun = performance.now();
      this.#draft = { mask: shown, shape: outlined(shown.data, size, shown.box) };
      this.#cost = performance.now() - begun;
    }
    if (this.#draft.shape) {
      this.#fill(this.#draft.shape.path, "#3d8bff", 0.45);
      this.#outline(this.#draft.shape.path, "#fff", 2);
    }
    if (slow) this.#stroke(this.gesture.stroke);
  }

  #stroke({ path, radius, erase }) {
    const line = new Path2D(), c = this.#context;
    path.forEach(([x, y]) => line.lineTo(x, y));
    if (path.length === 1) line.lineTo(path[0][0] + 1e-3, path[0][1]);
    this.#line(1, erase ? "rgb(0 0 0 / 0.5)" : "rgb(61 139 255 / 0.6)");
    c.lineWidth = 2 * radius;
    c.lineCap = "round";
    c.stroke(line);
    c.lineCap = "butt";
  }

  #ghost({ path }) {
    this.#fill(path, "#3d8bff", 0.22);
    this.#outline(path, "rgb(255 255 255 / 0.75)", 1);
  }

  #prompts() {
    const { state, pending } = this.session, gesture = this.gesture;
    const box = gesture?.box ?? pending.findLast((one) => one.box)?.box ?? state?.box;
    if (box) {
      const path = new Path2D();
      path.rect(box[0], box[1], box[2] - box[0], box[3] - box[1]);
      this.#outline(path, "#fff", 1.5, [6, 4]);
    }
    if (gesture?.path) {
      const path = new Path2D();
      gesture.path.forEach(([x, y]) => path.lineTo(x, y));
      this.#outline(path, gesture.label ? "#35d07f" : "#ff5b5b", 3);
    }
    for (const point of state?.points ?? []) this.#point(point, 1);
    for (const { points } of pending) for (const point of points) this.#point(point, 0.6);
  }

  /** A click: a plus or a minus, told apart without colours, too. */
  #point([x, y, label], alpha) {
    const c = this.#context, r = (7 * this.#unit) / this.scale;
    c.globalAlpha = alpha;
    c.setLineDash([]);
    c.beginPath();
    c.arc(x, y, r, 0, 7);
    c.fillStyle = label ? "#0f7a43" : "#c22b2b";
    c.fill();
    this.#line(1.5, "#fff");
    c.stroke();
    c.beginPath();
    c.moveTo(x - r / 2, y);
    c.lineTo(x + r / 2, y);
    if (label) {
      c.moveTo(x, y - r / 2);
      c.lineTo(x, y + r / 2);
    }
    this.#line(1.75, "#fff");
    c.stroke();
    c.globalAlpha = 1;
  }

  /** The brush where it would paint, and the cross of who works by keys. */
  #cursor() {
    const c = this.#context, { pointer } = this;
    if (!pointer) return;
    const path = new Path2D();
    if (pointer.radius) {
      path.arc(...pointer.place, pointer.radius, 0, 7);
      this.#outline(path, "#fff", 1);
    } else if (pointer.keyboard) {
      const [x, y] = pointer.place, r = (12 * this.#unit) / this.scale;
      path.moveTo(x - r, y);
      path.lineTo(x + r, y);
      path.moveTo(x, y - r);
      path.lineTo(x, y + r);
      this.#outline(path, "#fff", 1.5);
    }
    c.setLineDash([]);
  }
}
