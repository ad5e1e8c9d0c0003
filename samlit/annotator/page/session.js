/* One image: its masks, its proposals, the mask in the making, and what can be undone. */

import { after, unique } from "./changes.js";
import { EMPTY, along, drawn, measured, prompt } from "./draft.js";
import { decode, encode } from "./rle.js";

export class Session extends EventTarget {
  #last = Promise.resolve();
  #done = [];
  #undone = [];
  #document;
  #tools;
  #resumed = null; // what was unfinished when the image was opened

  /**
   * @param image {id, name} as the project has it.
   * @param told {size, document} as the server has it.
   * @param tools {outbox, decoding, clock, drafts, person}
   */
  constructor(image, { size, document }, tools) {
    super();
    Object.assign(this, { image, size, grid: null, ready: null, state: null, mask: null, pending: [] });
    this.offered = []; // proposals, decided on or not
    this.#document = document;
    this.#tools = tools;
    this.signal = new AbortController();
    this.#replay();
    this.#resume();
  }

  /** Leave the image; what is unfinished is kept in the browser. */
  close() {
    this.signal.abort();
  }

  /** What the server has, with what is on its way to it. */
  update(document) {
    if ((document.samlit.revision ?? 0) < (this.#document.samlit.revision ?? 0)) return;
    this.#document = document;
    this.#replay();
    this.#changed();
  }

  /** The proposals that nobody has decided on. */
  get proposals() {
    const taken = new Set(this.rows.map((row) => row.provenance?.proposal?.id).filter(Boolean));
    if (this.state?.base?.proposal) taken.add(this.state.base.proposal);
    return this.offered.filter((one) => !taken.has(one.id) && !this.rejected.has(one.id));
  }

  get busy() {
    return this.pending.length > 0;
  }

  // The mask in the making.

  click(point) {
    return this.#refine({ points: [point] });
  }

  scribble(path, label) {
    return this.#refine({ points: along(path, label) });
  }

  box(box) {
    return this.#refine({ box });
  }

  stroke(stroke) {
    return this.#act(() => {
      const state = this.state ?? EMPTY;
      this.#to({ ...state, strokes: [...state.strokes, stroke] });
    });
  }

  choose(number) {
    return this.#act(() => {
      const count = this.state?.candidates.length ?? 0;
      if (count > 1 && this.state.chosen !== number % count) this.#to({ ...this.state, chosen: number % count });
    });
  }

  /** Give the mask in the making a name. */
  name(phrase) {
    if (!this.state) return;
    this.state = { ...this.state, phrase };
    this.#keep();
  }

  discard() {
    return this.#act(() => this.state && this.#to(null));
  }

  /** What was unfinished was finished in another tab: here nothing is left of it, if it is as it was. */
  finished() {
    return this.#act(() => this.#resumed && this.state === this.#resumed && this.#set(null));
  }

  /** Ask the model for what a person wants by now, with one prompt more. */
  #refine({ points = [], box = null }) {
    const shown = { points, box };
    this.pending.push(shown);
    this.#changed();
    return this.#act(async () => {
      try {
        await this.ready;
        const before = this.state ?? EMPTY;
        const wanted = { ...before, points: [...before.points, ...points], box: box ?? before.box };
        const asked = prompt(wanted, before, this.mask, this.grid), { signal } = this.signal;
        signal.throwIfAborted(); // who left the image gets no answer about another
        const candidates = await this.#tools.decoding.answer(asked, signal);
        signal.throwIfAborted();
        this.#to({ ...wanted, candidates, chosen: 0 });
      } finally {
        this.pending.splice(this.pending.indexOf(shown), 1);
        this.#changed();
      }
    });
  }

  // Masks.

  /** Keep the mask in the making. */
  accept() {
    return this.#act(() => {
      const { state, mask } = this;
      if (!state) return;
      if (!mask.box) throw new Error("the mask is empty");
      const { target, proposal, prompts } = state.base ?? {};
      const before = target && this.#row(target.id); // not there any more: a mask of its own
      const provenance = {
        prompts: { points: [...(prompts?.points ?? []), ...state.points], box: state.box ?? prompts?.box ?? null,
          strokes: [...(prompts?.strokes ?? []), ...state.strokes] },
        seconds: this.#tools.clock.decide(before ? 0 : 1) + (before?.provenance?.seconds ?? 0),
        person: this.#tools.person,
        proposal: proposal ? { id: proposal, edited: true } : null,
      };
      const score = state.candidates[state.chosen]?.score ?? state.base?.score ?? 1;
      const content = {
        size: this.size, counts: encode(mask.data, this.size, mask.box), phrase: state.phrase.trim(), predicted_iou: score, provenance,
      };
      const id = before ? before.id : unique();
      // Made on the mask as it was when it was taken up: who changed it meanwhile is not overwritten.
      this.#put(before ? { op: "replace", id, revision: target.revision, ...content } : { op: "add", id, ...content });
      this.#set(null);
      this.#record(
        () => (before ? this.#return(before, content) : this.#remove(id, content), this.#reopen(state)),
        () => (before ? this.#replace(id, content) : this.#bring(id), this.#set(null)),
      );
    });
  }

  /** Take a proposal as it is. */
  acceptProposal(proposal) {
    return this.#act(() => {
      const { id: given, size, counts, predicted_iou } = proposal;
      const there = this.deleted.find((row) => row.provenance?.proposal?.id === given && !row.provenance.proposal.edited);
      const id = there?.id ?? unique();
      const seconds = this.#tools.clock.decide(1);
      const provenance = {
        prompts: { points: [], box: null, strokes: [] }, seconds, person: this.#tools.person, proposal: { id: given, edited: false },
      };
      if (there) this.#bring(id);
      else this.#put({ op: "add", id, size, counts, phrase: "", predicted_iou, provenance });
      this.#record(() => this.#remove(id), () => this.#bring(id));
    });
  }

  rejectProposal({ id }) {
    return this.#act(() => {
      this.#tools.clock.decide(0);
      this.#put({ op: "reject", proposal: id });
      this.#record(() => this.#put({ op: "unreject", proposal: id }), () => this.#put({ op: "reject", proposal: id }));
    });
  }

  /** Take a mask or a proposal up again, to change it. */
  modify(item) {
    return this.#act(async () => {
      if (this.state) return;
      const proposal = item.segmentation ? item.provenance?.proposal?.id : item.id;
      const data = decode((item.segmentation ?? item).counts, this.size);
      const target = item.segmentation ? { id: item.id, revision: item.revision ?? 0 } : null;
      const base = { data, target, proposal, prompts: item.provenance?.prompts, score: item.predicted_iou };
      this.#to({ ...EMPTY, base, phrase: item.phrase ?? "" });
    });
  }

  remove({ id }) {
    return this.#act(() => {
      this.#remove(id);
      this.#record(() => this.#bring(id), () => this.#remove(id));
    });
  }

  /** Give a mask another name. */
  rename(row, phrase) {
    return this.#act(() => {
      const before = this.#row(row.id);
      if (!before || (before.phrase ?? "") === phrase.trim()) return;
      const content = { ...contentOf(before, this.size), phrase: phrase.trim() };
      this.#replace(row.id, content);
      this.#record(() => this.#return(before, content), () => this.#replace(row.id, content));
    });
  }

  finish(whether) {
    return this.#act(() => whether !== this.done && this.#put({ op: whether ? "done" : "undone" }));
  }

  // Undo.

  undo() {
    return this.#act(() => this.#step(this.#done, this.#undone, "undo"));
  }

  redo() {
    return this.#act(() => this.#step(this.#undone, this.#done, "redo"));
  }

  get undoable() {
    return this.#done.length > 0;
  }

  get redoable() {
    return this.#undone.length > 0;
  }

  #step(from, to, way) {
    const entry = from.pop();
    if (!entry) return;
    entry[way]();
    to.push(entry);
    this.#changed();
  }

  #record(undo, redo) {
    this.#done.push({ undo, redo });
    if (this.#done.length > 200) this.#done.shift();
    this.#undone = [];
    this.#changed();
  }

  // The parts of all that.

  /** One thing after the other, however slow the model is. */
  #act(what) {
    const now = this.#last.then(what).catch((error) => {
      if (error.name !== "AbortError") this.dispatchEvent(new CustomEvent("note", { detail: error.message }));
    });
    this.#last = now;
    return now;
  }

  #to(state) {
    const before = this.state;
    this.#set(state);
    this.#record(() => this.#set(before), () => this.#set(state));
  }

  #set(state) {
    this.state = state;
    this.mask = state && drawn(state, this.size, this.grid);
    this.#tools.clock.begin(state !== null);
    this.#keep();
    this.#changed();
  }

  /** A mask in the making again, to be made on what undoing left. */
  #reopen(state) {
    const { base } = state, row = base?.target && this.#row(base.target.id);
    this.#set(row ? { ...state, base: { ...base, target: { id: row.id, revision: row.revision } } } : state);
  }

  #row(id) {
    return this.rows.find((row) => row.id === id);
  }

  /** What is undone must be as it was done. */
  #as(id, content) {
    const row = this.#row(id);
    if (content && row?.segmentation.counts !== content.counts) throw new Error("somebody else changed the mask meanwhile: it stays");
    return row;
  }

  #remove(id, content = null) {
    const row = this.#as(id, content);
    if (row) this.#put({ op: "delete", id, revision: row.revision ?? 0 });
  }

  #bring(id) {
    const row = this.deleted.find((one) => one.id === id);
    if (row) this.#put({ op: "restore", id, revision: row.revision ?? 0 });
  }

  #return(before, content) {
    this.#as(before.id, content);
    this.#replace(before.id, contentOf(before, this.size));
  }

  #replace(id, content) {
    const row = this.#row(id);
    if (row) this.#put({ op: "replace", id, revision: row.revision ?? 0, ...content });
  }

  #put(change) {
    this.#tools.outbox.put(this.image.id, change);
    this.#replay();
    this.#changed();
  }

  #replay() {
    Object.assign(this, after(this.#document, this.#tools.outbox.of(this.image.id)));
  }

  #changed() {
    this.dispatchEvent(new Event("change"));
  }

  /** Keep the unfinished mask in the browser, for a reload or for later. */
  #keep() {
    if (!this.state) return this.#tools.drafts.forget(this.image.id);
    const { box, data } = this.mask;
    const { points, box: given, strokes, phrase, base, candidates, chosen } = this.state;
    const score = candidates[chosen]?.score ?? base?.score;
    const prompts = {
      points: [...(base?.prompts?.points ?? []), ...points], box: given ?? base?.prompts?.box ?? null,
      strokes: [...(base?.prompts?.strokes ?? []), ...strokes],
    };
    const counts = box && encode(data, this.size, box);
    this.#tools.drafts.keep(this.image.id, {
      size: this.size, counts, phrase, prompts, score, target: base?.target ?? null, proposal: base?.proposal ?? null,
    });
  }

  #resume() {
    const kept = this.#tools.drafts.of(this.image.id);
    if (!kept || String(kept.size) !== String(this.size)) return;
    const { counts, phrase, prompts, score, target, proposal } = kept;
    const data = counts ? decode(counts, this.size) : new Uint8Array(this.size[0] * this.size[1]);
    this.state = { ...EMPTY, phrase, base: { data, target, proposal, prompts, score } };
    this.mask = measured(data, this.size);
    this.#resumed = this.state;
    this.#tools.clock.begin(true);
  }
}

/** What a replace has to say to make a mask what this row is. */
function contentOf(row, size) {
  const { segmentation, phrase = "", predicted_iou = 1, provenance } = row;
  const { prompts, seconds, person, proposal } = provenance ?? {};
  return {
    size, counts: segmentation.counts, phrase, predicted_iou,
    provenance: {
      prompts: prompts ?? { points: [], box: null, strokes: [] }, seconds: seconds ?? 0, person: person ?? "", proposal: proposal ?? null,
    },
  };
}
