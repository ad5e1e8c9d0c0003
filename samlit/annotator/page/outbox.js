/* Changes on their way to the server. They lie in localStorage until the server has them on its disk, so that neither a
   lost connection nor a closed tab loses any; all are safe to be sent twice. */

import { Lost, Refused, ask, of, pause } from "./api.js";
import { holds, unique } from "./changes.js";

const REFUSED_FOR_GOOD = [400, 404, 413, 422];

export class Outbox extends EventTarget {
  #prefix;
  #memory = new Map(); // where the browser keeps nothing
  #sending = null;
  #count = 0;
  #others;

  /** @param project A word for the folder of annotations: another folder's server must not get these changes. */
  constructor(project) {
    super();
    this.#prefix = `samlit/${project}/change/`;
    this.trouble = "";
    // What a tab learns from the server all of them know: one may have sent what another one made.
    this.#others = new BroadcastChannel(this.#prefix);
    this.#others.onmessage = ({ data }) => this.#told(data);
  }

  /** All that is not on the server's disk, the oldest first: [key, {image, change}]. */
  get waiting() {
    const keys = Object.keys(localStorage).filter((key) => key.startsWith(this.#prefix));
    const kept = keys.map((key) => [key, JSON.parse(localStorage.getItem(key))]);
    return [...kept, ...this.#memory].sort(([a], [b]) => (a < b ? -1 : 1));
  }

  /** Whether something waits that would be lost with the tab. */
  get fragile() {
    return this.#memory.size > 0;
  }

  /** The changes of one image that are not on the server's disk. */
  of(image) {
    return this.waiting.filter(([, one]) => one.image === image).map(([, one]) => one.change);
  }

  /** Take a change and begin to send it. */
  put(image, change) {
    const key = `${this.#prefix}${String(Date.now()).padStart(15, "0")}-${String(this.#count++).padStart(6, "0")}-${unique()}`;
    try {
      localStorage.setItem(key, JSON.stringify({ image, change }));
    } catch {
      this.#memory.set(key, { image, change });
      this.#tell("the browser keeps nothing: leave the tab open until all is saved");
    }
    this.send();
  }

  /** Send all that waits; until it is done where the server is away. */
  send() {
    this.#sending ??= this.#alone(() => this.#sendAll()).finally(() => {
      this.#sending = null;
      if (this.waiting.length) this.send();
    });
    this.dispatchEvent(new Event("change"));
    return this.#sending;
  }

  /** One tab sends at a time, where the browser can see to that. */
  #alone(what) {
    return navigator.locks ? navigator.locks.request(this.#prefix, what) : what();
  }

  async #sendAll() {
    for (let wait = 500; ; wait = Math.min(2 * wait, 8000)) {
      const stuck = new Set();
      let trouble = "";
      for (const [key, { image, change }] of this.waiting) {
        if (stuck.has(image)) continue;
        try {
          const told = await (await ask(of(image, "change"), { body: change })).json();
          this.#sent(key, image, told);
        } catch (error) {
          if (error instanceof Refused && error.status === 409) await this.#late(key, image, change, error).catch(() => stuck.add(image));
          else if (error instanceof Refused && REFUSED_FOR_GOOD.includes(error.status)) this.#aside(key, error);
          else {
            stuck.add(image);
            trouble = error instanceof Lost || error instanceof Refused ? error.message : String(error);
            if (error instanceof Lost) break;
          }
        }
      }
      this.#tell(trouble);
      if (!stuck.size) return;
      await pause(wait);
    }
  }

  #sent(key, image, told) {
    this.#forget(key);
    const detail = { image, document: told.document, decided: told.decided };
    this.#others.postMessage(detail);
    this.#told(detail);
  }

  #told(detail) {
    this.dispatchEvent(new CustomEvent("sent", { detail }));
    this.dispatchEvent(new Event("change"));
  }

  /** Somebody else changed the mask meanwhile: what was made here becomes a mask of its own. */
  async #late(key, image, change, error) {
    const told = await (await ask(of(image))).json();
    if (change.op === "replace" && !holds(told.document, change)) {
      const own = { ...change, op: "add", id: unique(), revision: 0 };
      this.put(image, own);
      this.dispatchEvent(new CustomEvent("note", { detail: `${error.message}: yours is kept as another mask` }));
    } else if (change.op !== "replace") {
      this.dispatchEvent(new CustomEvent("note", { detail: error.message }));
    }
    this.#sent(key, image, told);
  }

  /** The server will never take it: it is kept in the browser, and said. */
  #aside(key, error) {
    const text = localStorage.getItem(key) ?? JSON.stringify(this.#memory.get(key));
    this.#forget(key);
    try {
      localStorage.setItem(key.replace("/change/", "/refused/"), text);
    } catch { /* it is said below */ }
    this.dispatchEvent(new CustomEvent("note", { detail: `the server refused a change: ${error.message}` }));
    this.dispatchEvent(new Event("change"));
  }

  #forget(key) {
    localStorage.removeItem(key);
    this.#memory.delete(key);
  }

  #tell(trouble) {
    this.trouble = trouble;
    this.dispatchEvent(new Event("change"));
  }
}
