/* The mask that a click would give, shown under the pointer where the decoder is quick enough. */

import { outlined } from "./shapes.js";
import { bounds } from "./raster.js";

const QUICK = 160; // milliseconds that an answer may take

export class Preview {
  #view;
  #decoding;
  #wanted = null;
  #running = false;
  #slow = 0;

  constructor(view, decoding) {
    this.#view = view;
    this.#decoding = decoding;
  }

  /** The pointer is at a place of the image; null where no preview is wanted. */
  at(place) {
    this.#wanted = place;
    if (!place && this.#view.preview) {
      this.#view.preview = null;
      this.#view.paint();
    }
    if (place && !this.#running) this.#run();
  }

  async #run() {
    this.#running = true;
    while (this.#wanted) {
      const place = this.#wanted, { session } = this.#view;
      if (!session?.grid || session.busy || session.state || performance.now() < this.#slow) break;
      try {
        const asked = { points: [[...place, 1]], box: null, mask: null, multimask: true };
        const [best] = await this.#decoding.answer(asked, session.signal.signal);
        if (this.#decoding.milliseconds > QUICK) this.#slow = performance.now() + 5000; // look again later
        if (this.#wanted && this.#view.session === session && !session.state) {
          const data = session.grid.mask(best);
          this.#view.preview = outlined(data, session.size, bounds(data, ...session.size));
          this.#view.paint();
        }
      } catch {
        break;
      }
      if (this.#wanted === place) this.#wanted = null;
    }
    this.#running = false;
  }
}
