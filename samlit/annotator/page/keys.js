/* The keys: one table, for the page and for its sheet. */

/** Groups of [keys, what they do, the name of the action and what it is given]; rows without an action are the mouse's. */
const TABLE = [
  ["Begin a mask", [
    [["Click"], "Add to the mask"],
    [["Right click", "Alt+Click"], "Take away"],
    [["Drag"], "Several clicks along a line"],
    [["Shift+Drag"], "Box"],
    [["C"], "Clicks and scribbles", "tool", "click"],
    [["B"], "Box", "tool", "box"],
  ]],
  ["Paint", [
    [["D"], "Brush", "tool", "brush"],
    [["E"], "Eraser", "tool", "eraser"],
    [["["], "Smaller", "brush", -1],
    [["]"], "Larger", "brush", 1],
  ]],
  ["Finish a mask", [
    [["1"], "First candidate", "choose", 0],
    [["2"], "Second candidate", "choose", 1],
    [["3"], "Third candidate", "choose", 2],
    [["Tab"], "Next candidate", "turn", 1],
    [["Shift+Tab"], "Candidate before", "turn", -1],
    [["L"], "Name", "label"],
    [["Enter"], "Accept", "accept"],
    [["Escape"], "Discard", "escape"],
    [["Ctrl+Z"], "Undo", "undo"],
    [["Ctrl+Shift+Z", "Ctrl+Y"], "Redo", "redo"],
  ]],
  ["Masks and proposals", [
    [["J"], "Next one", "mark", 1],
    [["K"], "One before", "mark", -1],
    [["A"], "Accept the proposal", "take"],
    [["M"], "Modify it", "modify"],
    [["X"], "Reject the proposal", "reject"],
    [["Delete", "Backspace"], "Delete the mask", "remove"],
  ]],
  ["Images", [
    [["N", "ArrowRight"], "Next image", "go", 1],
    [["P", "ArrowLeft"], "Image before", "go", -1],
    [["Shift+N"], "Next that is not done", "skip"],
    [["Shift+Enter"], "Done, next image", "finish"],
  ]],
  ["View", [
    [["Wheel"], "Zoom"],
    [["Space+Drag", "Middle button"], "Move"],
    [["+"], "Nearer", "zoom", 1.25],
    [["-"], "Farther", "zoom", 0.8],
    [["0"], "Whole image", "fit"],
    [["H"], "Hide masks", "hide"],
    [["?"], "This sheet", "help"],
  ]],
  ["Without a mouse", [
    [["Shift+ArrowLeft"], "Move the cross left", "nudge", [-24, 0]],
    [["Shift+ArrowRight"], "Move it right", "nudge", [24, 0]],
    [["Shift+ArrowUp"], "Move it up", "nudge", [0, -24]],
    [["Shift+ArrowDown"], "Move it down", "nudge", [0, 24]],
    [["."], "Add, paint, or set a corner", "press", 1],
    [[","], "Take away at the cross", "press", 0],
  ]],
];

const SHOWN = { ArrowLeft: "←", ArrowRight: "→", ArrowUp: "↑", ArrowDown: "↓", Escape: "Esc", Ctrl: /Mac/.test(navigator.platform) ? "⌘" : "Ctrl" };

const bound = new Map(TABLE.flatMap(([, rows]) => rows).flatMap(([keys, , name, given]) =>
  name ? keys.map((key) => [key.toLowerCase(), { name, given }]) : []));

/** The action of a key press as {name, given}, or undefined. */
export function action(event) {
  // Where letters are not Latin ones the key's place counts.
  const key = /^[^\x00-\x7f]$/.test(event.key) && event.code.startsWith("Key") ? event.code.slice(3) : event.key;
  const word = key.length > 1 || /[a-z]/i.test(key); // of other signs shift and alt are a part, on some keyboards
  const ctrl = (event.ctrlKey || event.metaKey) && !event.getModifierState("AltGraph");
  const held = [ctrl && "ctrl", event.altKey && word && "alt", event.shiftKey && word && "shift"];
  return bound.get([...held.filter(Boolean), key.toLowerCase()].join("+"));
}

/** Fill an element with the sheet of all keys. */
export function sheet(element) {
  element.replaceChildren(...TABLE.map(([title, rows]) => {
    const section = document.createElement("section");
    const heading = document.createElement("h3");
    heading.textContent = title;
    const list = document.createElement("dl");
    for (const [keys, says] of rows) {
      const what = document.createElement("dt"), how = document.createElement("dd");
      keys.forEach((key, n) => {
        if (n) how.append(" or ");
        key.split(/(?<=.)\+/).forEach((part) => {
          const cap = document.createElement("kbd");
          cap.textContent = SHOWN[part] ?? part;
          how.append(cap);
        });
      });
      what.textContent = says;
      const row = document.createElement("div");
      row.append(what, how);
      list.append(row);
    }
    section.append(heading, list);
    return section;
  }));
}
