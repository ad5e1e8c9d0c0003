/* Unfinished masks, kept in the browser: one an image. */

export class Drafts {
  #prefix;

  constructor(project) {
    this.#prefix = `samlit/${project}/draft/`;
  }

  /** Whether a change of localStorage is that another tab accepted or discarded an image's. */
  ended(event, image) {
    return event.key === this.#prefix + image && event.newValue === null;
  }

  of(image) {
    const text = localStorage.getItem(this.#prefix + image);
    return text && JSON.parse(text);
  }

  keep(image, draft) {
    try {
      localStorage.setItem(this.#prefix + image, JSON.stringify(draft));
    } catch { /* full: what was accepted is more important, and has its own place */ }
  }

  forget(image) {
    localStorage.removeItem(this.#prefix + image);
  }
}
