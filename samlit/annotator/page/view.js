/* The canvas: where the image lies on it, and all that is drawn over it. */

import { colour, outlined, shape } from "./shapes.js";

const MOST = 64; // screen pixels for a pixel of the image

export class View extends EventTarget {
  #canvas;
  #context;
  #picture = null;
  #frame = 0;
  #draft = { mask: null, shape: null };

  constructor(canvas) {
    super();
    this.#canvas = canvas;
    this.#context = canvas.getContext("2d");
    Object.assign(this, { scale: 1, x: 0, y: 0, session: null, hidden: false, gesture: null, preview: null, pointer: null });
    this.marked = null; // the mask or proposal that keys are about
    new ResizeObserver(() => this.#resize()).observe(canvas);
  }

  /** Show a session's image, all of it. */
  open(session, picture) {
    Object.assign(this, { session, preview: null, gesture: null, marked: null });
    this.#picture = picture;
    this.fit();
  }

  /** Show nothing. */
  close() {
    Object.assign(this, { session: null, preview: null, gesture: null, marked: null });
    this.#context.resetTransform();
    this.#context.clearRect(0, 0, this.#canvas.width, this.#canvas.height);
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
    this.#canvas.width = Math.round(width * this.#ratio);
    this.#canvas.height = Math.round(height * this.#ratio);
    if (!this.session) return;
    this.x += (width - before) / 2;
    this.y += (height - high) / 2;
    this.#paint();
  }

  #moved() {
    this.dispatchEvent(new Event("move"));
    this.paint();
  }

  #paint() {
    const c = this.#context, k = this.#ratio, { session } = this;
    c.resetTransform();
    c.clearRect(0, 0, this.#canvas.width, this.#canvas.height);
    c.setTransform(k * this.scale, 0, 0, k * this.scale, k * this.x, k * this.y);
    c.imageSmoothingEnabled = this.scale * k < 6;
    c.imageSmoothingQuality = "high";
    c.drawImage(this.#picture, 0, 0, session.size[1], session.size[0]);
    if (!this.hidden) {
      for (const row of session.rows) if (row.id !== session.state?.base?.target?.id) this.#mask(row);
      for (const proposal of session.proposals) this.#proposal(proposal);
      if (session.state || this.gesture?.mask) this.#making();
      else if (this.preview) this.#ghost(this.preview);
    }
    this.#prompts();
    this.#cursor();
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
    const { mask, size } = this.session, live = this.gesture?.mask ?? mask;
    if (this.#draft.mask !== live || this.gesture?.mask) {
      this.#draft = { mask: live, shape: outlined(live.data, size, live.box) };
    }
    this.#fill(this.#draft.shape.path, "#3d8bff", 0.45);
    this.#outline(this.#draft.shape.path, "#fff", 2);
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
