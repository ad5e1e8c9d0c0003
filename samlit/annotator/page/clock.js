/* Seconds that a person works; a pause is no work. */

const PAUSE = 20_000; // milliseconds without a movement or key, from which on a person is elsewhere

export class Clock {
  #last = performance.now();
  #worked = 0;
  #lap = 0;
  #first = null; // when the first image was there: to wait for it was no work
  #since = null;

  constructor() {
    this.masks = 0;
  }

  /** The person moved. */
  touch() {
    const now = performance.now();
    this.#worked += Math.min(now - this.#last, PAUSE);
    this.#last = now;
  }

  /** Seconds worked until now. */
  get seconds() {
    return (this.#worked + Math.min(performance.now() - this.#last, PAUSE)) / 1000;
  }

  /** A mask was begun, or there is none any more. */
  begin(whether) {
    if (!whether) this.#since = null;
    else this.#since ??= this.seconds;
  }

  /** Seconds on the mask that was begun. */
  get onMask() {
    return this.#since === null ? 0 : this.seconds - this.#since;
  }

  /** Seconds since the last decision, which this one ends. */
  decide(masks) {
    const seconds = this.seconds, taken = seconds - this.#lap;
    this.#lap = seconds;
    this.#first ??= seconds;
    this.masks += masks;
    return taken;
  }

  /** Masks an hour at this pace, or null where it is too early to say. */
  get perHour() {
    return this.masks > 1 ? (3600 * this.masks) / Math.max(this.#lap - this.#first, 1) : null;
  }
}
