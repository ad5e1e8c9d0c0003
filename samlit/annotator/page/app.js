/* The page: which image, which keys, and everything told to everything. */

import { Lost, Refused, ask, of, pause } from "./api.js";
import { Clock } from "./clock.js";
import { open as openDecoding } from "./decoding.js";
import { Grid } from "./draft.js";
import { Drafts } from "./drafts.js";
import { action, sheet } from "./keys.js";
import { Outbox } from "./outbox.js";
import { Panel } from "./panel.js";
import { Pointer } from "./pointer.js";
import { Preview } from "./preview.js";
import { Session } from "./session.js";
import { View } from "./view.js";

const LONG = 30; // seconds on one mask, after which the paper's annotators went on (section 4, stage 1)

const by = (id) => document.getElementById(id);
const project = await reached(() => ask("/api/project").then((answer) => answer.json()));
const decoding = openDecoding(project);
const word = project.id ?? "";
const outbox = new Outbox(word), drafts = new Drafts(word), clock = new Clock();
const tools = { outbox, decoding, clock, drafts, person: project.person };
const view = new View(by("canvas"), by("picture")), pointer = new Pointer(by("canvas"), view);
const preview = new Preview(view, decoding), panel = new Panel();
const names = new Set(project.names);
const fresh = new Map(); // an image's annotations when they were last sent, which may be after they were asked for
panel.person = project.person;
let session = null, at = -1, hovered = null, naming = null, note = "", noteEnds = 0, ready = false;

/** What is asked, again and again until the server is there. */
async function reached(what) {
  for (;;) {
    try {
      return await what();
    } catch (error) {
      trouble(error.message);
      if (!(error instanceof Lost)) throw error;
      await pause(1000);
    }
  }
}

function trouble(text) {
  by("trouble").textContent = text;
  by("trouble").hidden = !text;
}

// Images.

async function show(number) {
  if (number < 0 || number >= project.images.length) return;
  session?.close();
  pointer.cancel();
  [at, session, ready, hovered] = [number, null, false, null];
  const image = project.images[number];
  preview.at(null);
  view.close();
  panel.close();
  hint();
  history.replaceState(null, "", `#${image.id}`);
  header();
  try {
    const told = await reached(() => ask(of(image.id)).then((answer) => answer.json()));
    const picture = await reached(async () => createImageBitmap(await (await fetch(of(image.id, "picture"))).blob()));
    if (at !== number) return;
    trouble("");
    session = new Session(image, told, tools);
    if (fresh.has(image.id)) session.update(fresh.get(image.id));
    session.addEventListener("change", update);
    session.addEventListener("note", (event) => say(event.detail));
    view.open(session, picture);
    panel.open(session, picture);
    prepare(session);
    propose(session);
    clock.decide(0);
    update();
    const after = project.images[number + 1];
    if (after) fetch(of(after.id, "picture")).catch(() => {});
  } catch (error) {
    if (at === number) trouble(`${image.name}: ${error.message}`);
  }
}

/** Have the model look at the image. */
function prepare(one) {
  one.ready = reached(() => decoding.image(one.image.id, one.signal.signal)).then((geometry) => {
    one.grid = new Grid(one.size, geometry);
    if (one === session) trouble("");
    ready ||= one === session;
    update();
  });
  one.ready.catch((error) => {
    if (error.name !== "AbortError" && one === session) trouble(`${one.image.name}: ${error.message}`);
  });
}

/** Ask for proposals until they are made. */
async function propose(one) {
  panel.waiting = project.proposals;
  while (project.proposals && one === session) {
    const told = await ask(of(one.image.id, "proposals"), { signal: one.signal.signal })
      .then((answer) => answer.json())
      .catch((error) => (error instanceof Refused ? { ready: true, proposals: [] } : null)); // of a damaged image
    if (one !== session) return;
    if (told?.ready) {
      one.offered = told.proposals;
      panel.waiting = false;
      update();
      return;
    }
    await pause(1000);
  }
}

/** What others did meanwhile. */
async function refresh() {
  const one = session;
  if (!one || document.hidden) return;
  const told = await ask(of(one.image.id)).then((answer) => answer.json(), () => null);
  if (!told) return;
  one.image.decided = told.decided;
  if (one === session) one.update(told.document);
}

// What is shown.

function update() {
  if (!session) return;
  if (view.marked) mark(session.state ? null : current(view.marked)); // keys are about the mask in the making then
  const { rows, done } = session, image = project.images[at];
  Object.assign(image, { masks: rows.length, done });
  by("decoder").textContent = decoding.where === "browser" ? "" : "decoded by the server";
  for (const { phrase } of rows) if (phrase) names.add(phrase);
  panel.names([...names].sort());
  panel.update(view.marked);
  by("undo").disabled = !session.undoable;
  by("redo").disabled = !session.redoable;
  by("finish").firstChild.data = at + 1 < project.images.length ? "Done, next image " : "Done ";
  if (session.state || session.busy) preview.at(null);
  header();
  hint();
  view.paint();
}

function header() {
  const { images } = project, image = images[at], done = images.filter((one) => one.done).length;
  by("image").textContent = image.name;
  by("image").title = image.name;
  by("place").textContent = `${at + 1} of ${images.length}${image.done ? " · done" : ""}`;
  by("previous").disabled = at === 0;
  by("next").disabled = at + 1 >= images.length;
  by("progress").max = images.length;
  by("progress").value = done;
  by("done").textContent = `${done} of ${images.length} done`;
  by("tally-masks").textContent = images.reduce((sum, one) => sum + one.masks, 0).toLocaleString("en");
  by("model").textContent = `${project.model.name}${taken(images)}`;
  by("tally-hour").textContent = clock.perHour === null ? "–" : Math.round(clock.perHour).toLocaleString("en");
}

/** How many of the model's proposals were right as they were. */
function taken(images) {
  const [accepted, edited, rejected] = [0, 1, 2].map((n) => images.reduce((sum, one) => sum + one.decided[n], 0));
  const all = accepted + edited + rejected;
  return all ? `: ${accepted.toLocaleString("en")} of ${all.toLocaleString("en")} proposals taken as they were` : "";
}

function saved() {
  const count = outbox.waiting.length, element = by("saved");
  element.textContent = count ? `${count} not saved yet` : "Saved";
  element.title = outbox.trouble;
  element.classList.toggle("waiting", count > 0 && outbox.trouble !== "");
}

function say(text) {
  [note, noteEnds] = [text, performance.now() + 6000];
  hint();
}

/** One line: what is wrong, what lasts, or what can be done now. */
function hint() {
  const element = by("hint"), long = session?.state && clock.onMask > LONG;
  let text;
  if (performance.now() < noteEnds) text = note;
  else if (outbox.trouble) text = `${outbox.trouble}; your masks are kept and sent again`;
  else if (!ready) text = "The model looks at the image …";
  else if (long) text = `${LONG} seconds on this mask: accept it as it is, or discard it and go on`;
  else if (session?.state) text = "Click to add, right click to take away, Enter to accept";
  else if (view.marked && !view.marked.segmentation) text = "A accepts the proposal, M modifies it, X rejects it";
  else text = { click: "Click on a thing, or drag a line over it", box: "Drag a box around a thing", brush: "Paint a mask", eraser: "Take away from a mask" }[pointer.tool];
  if (element.textContent !== text) element.textContent = text;
  element.classList.toggle("warm", Boolean(long || outbox.trouble));
}

function mark(item) {
  if (document.activeElement === by("name") && !session.state) return; // the name is of the one that is marked
  view.marked = item;
  panel.mark(item);
  hint();
  view.paint();
}

/** The same mask or proposal as it is by now. */
function current(item) {
  return (item.segmentation ? session.rows : session.proposals).find((one) => one.id === item.id) ?? null;
}

/** The proposal after one that is decided on is next. */
function decided(what, item) {
  const next = session.proposals[session.proposals.indexOf(current(item)) + 1] ?? session.proposals.find((one) => one.id !== item.id);
  return what.then(() => mark(next ?? null));
}

// What can be done, by the names in keys.js and in the page.

const actions = {
  tool(name) {
    pointer.use(name);
    for (const button of document.querySelectorAll("[data-tool]")) button.setAttribute("aria-pressed", String(button.dataset.tool === name));
    by("canvas").dataset.tool = name;
    preview.at(null);
    hint();
  },
  brush(way) {
    pointer.resize(way > 0 ? Math.max(pointer.size * 1.25, pointer.size + 1) : Math.min(pointer.size / 1.25, pointer.size - 1));
    by("brush").textContent = pointer.size;
  },
  choose: (number) => session.choose(number),
  turn: (way) => session.choose(session.state.chosen + way + session.state.candidates.length),
  label: () => by("name").focus(),
  accept: () => (session.state ? session.accept() : actions.take()),
  escape: () => pointer.cancel() || (session.state ? session.discard() : mark(null)),
  undo: () => session.undo(),
  redo: () => session.redo(),
  mark(way) {
    const items = [...session.proposals, ...[...session.rows].reverse()];
    const place = view.marked ? items.findIndex((item) => item.id === view.marked.id) : way > 0 ? -1 : 0;
    if (items.length) mark(items[(place + way + items.length) % items.length]);
  },
  take: (item = view.marked) => item && !item.segmentation && decided(session.acceptProposal(item), item),
  reject: (item = view.marked) => item && !item.segmentation && decided(session.rejectProposal(item), item),
  modify: (item = view.marked) => item && session.modify(item).then(() => mark(null)),
  remove(item = session.state ? null : view.marked) {
    if (item?.segmentation) session.remove(item);
    else if (item) actions.reject(item);
    else session.discard();
  },
  go: (way) => show(at + Number(way)),
  skip() {
    const order = project.images.map((_, n) => (at + 1 + n) % project.images.length);
    const next = order.find((n) => !project.images[n].done);
    if (next !== undefined) show(next);
  },
  async finish() {
    const one = session;
    if (one.state) return say("Accept or discard the mask first");
    await one.finish(at + 1 < project.images.length || !one.done);
    if (one === session && at + 1 < project.images.length) show(at + 1);
  },
  zoom: (factor) => view.zoom(factor),
  fit: () => view.fit(),
  hide() {
    view.hidden = !view.hidden;
    by("hide").setAttribute("aria-pressed", String(view.hidden));
    view.paint();
  },
  help: () => by("keys").showModal(),
  nudge: (by_) => pointer.nudge(...by_),
  press: (label) => pointer.press(label),
};

function run(name, given) {
  if (session || name === "tool" || name === "help" || name === "go" || name === "skip") actions[name](given);
}

addEventListener("keydown", (event) => {
  clock.touch();
  if (by("keys").open) {
    if (event.key === "?") by("keys").close();
    return;
  }
  const focus = document.activeElement, found = action(event);
  if (focus === by("name")) {
    if (event.key !== "Enter" && event.key !== "Escape") return;
    event.preventDefault();
    named(event.key === "Enter");
    return;
  }
  if (!found) return;
  if (focus.matches("button") && event.key === "Enter" && !event.shiftKey) return; // it presses the button
  if (found.name === "turn" && (focus.matches("button") || !(session?.state?.candidates.length > 1))) {
    document.body.dataset.keyboard = ""; // it moves the focus
    return;
  }
  event.preventDefault();
  run(found.name, found.given);
});

/** The field of the name is left with Enter, which accepts the mask in the making, or with Escape. */
function named(whether) {
  if (!whether) by("name").value = session?.state?.phrase ?? naming?.phrase ?? "";
  by("canvas").focus();
  if (whether && session?.state) session.accept();
}

// Whose name is typed is settled when the typing begins, wherever the pointer goes meanwhile.
by("name").addEventListener("focus", () => (naming = session?.state ? null : view.marked));
by("name").addEventListener("change", () => {
  const row = naming?.segmentation && session && current(naming);
  if (row) session.rename(row, by("name").value);
});

for (const button of document.querySelectorAll("header [data-do], .tools [data-do], .end [data-do]")) {
  button.addEventListener("click", () => run(button.dataset.do, button.dataset.given));
}
// A button that was clicked would take the next Enter as another click.
addEventListener("click", (event) => event.detail && event.target.closest("button") && !by("keys").open && by("canvas").focus());
addEventListener("pointermove", () => clock.touch());
addEventListener("pointerdown", () => delete document.body.dataset.keyboard, { capture: true });
addEventListener("focus", refresh);
document.addEventListener("visibilitychange", refresh);
addEventListener("storage", (event) => session && drafts.ended(event, session.image.id) && session.finished());
addEventListener("online", () => outbox.send());
addEventListener("beforeunload", (event) => outbox.fragile && event.preventDefault());

pointer.addEventListener("click", ({ detail }) => session.click(detail.point));
pointer.addEventListener("scribble", ({ detail }) => session.scribble(detail.path, detail.label));
pointer.addEventListener("box", ({ detail }) => session.box(detail.box));
pointer.addEventListener("stroke", ({ detail }) => session.stroke(detail.stroke));
pointer.addEventListener("hover", () => {
  if (!session) return;
  const { place } = pointer, free = !session.state && !session.busy && !view.gesture;
  const found = free && place && view.inside(place) ? view.hit(session.proposals, place) ?? view.hit(session.rows, place) : null;
  if (found !== hovered) {
    hovered = found;
    if (free) mark(found);
  }
  preview.at(free && !found && pointer.tool === "click" && place && view.inside(place) ? place : null);
});
panel.addEventListener("choose", ({ detail }) => run("choose", detail));
panel.addEventListener("do", ({ detail }) => run(detail));
panel.addEventListener("name", ({ detail }) => session?.name(detail));
panel.addEventListener("pick", ({ detail }) => mark(current(detail)));
panel.addEventListener("point", ({ detail }) => session && !session.state && mark(current(detail)));
panel.addEventListener("act", ({ detail: { item, what } }) => run(what, item));
view.addEventListener("move", () => (by("zoom").textContent = `${Math.round(100 * view.scale)} %`));
outbox.addEventListener("change", () => (saved(), hint()));
outbox.addEventListener("note", ({ detail }) => say(detail));
outbox.addEventListener("sent", ({ detail: { image, document: told, decided } }) => {
  fresh.set(image, told);
  const one = project.images.find(({ id }) => id === image);
  if (one) one.decided = decided;
  if (image === session?.image.id) session.update(told);
});

sheet(by("sheet"));
setInterval(() => (hint(), at >= 0 && header()), 1000);
setInterval(refresh, 15_000);
outbox.send();
const wanted = project.images.findIndex((image) => `#${image.id}` === location.hash);
const open = project.images.findIndex((image) => !image.done);
await show(wanted >= 0 ? wanted : Math.max(open, 0));
