/* Answers to prompts: by the decoder in the browser where it is there, else by the server. */

import { ask, of, patient } from "./api.js";

/** What answers prompts; its decoder is fetched while the page shows the image already.
 *
 * @param project As the server tells it.
 */
export const open = (project) => new Decoding(project.decoder === "browser" ? started() : Promise.resolve(null));

async function started() {
  try {
    await ask("/decoder/prompt.onnx", { method: "HEAD" });
    const { open: start } = await import("./decoder.js");
    const threads = crossOriginIsolated ? Math.min(navigator.hardwareConcurrency || 1, 4) : 1;
    return await start("/decoder", { threads, gpu: Boolean(navigator.gpu) });
  } catch (error) {
    console.warn("the server decodes:", error);
    return null;
  }
}

/** The answers about one image at a time; its candidates are {logits: Float32Array, side, score}, the surest first. */
class Decoding {
  #decoder = null;
  #started;
  #id = null;
  #memory = {};
  #last = Promise.resolve();

  constructor(starting) {
    this.where = "browser"; // or "server", that answers
    this.#started = starting.then((decoder) => {
      this.#decoder = decoder;
      if (!decoder) this.where = "server";
    });
    this.milliseconds = Infinity; // that the last answer took
  }

  /** Make an image ready.
   *
   * @returns {Promise<{frame, inside, low}>} Side of the model's frame and the [rows, columns] of it that hold picture, pixels,
   *     and the side of low-res logits.
   */
  image(id, signal) {
    // One after the other, so that the last one asked for is the one that stays.
    const now = this.#last.then(() => this.#image(id, signal));
    this.#last = now.catch(() => {});
    return now;
  }

  async #image(id, signal) {
    await this.#started;
    signal?.throwIfAborted();
    const answer = await patient(of(id, "embedding"), { method: this.#decoder ? "GET" : "HEAD", signal });
    const { embedding, size, inside, frame } = JSON.parse(answer.headers.get("x-samlit"));
    if (this.#decoder) {
      const values = await answer.arrayBuffer();
      await this.#decoder.image(values, { size, embedding }).catch((error) => this.#give(error));
    }
    signal?.throwIfAborted();
    this.#id = id;
    this.milliseconds = Infinity;
    return { frame, inside, low: 4 * embedding[1] };
  }

  /** The candidates for a prompt in pixels of the image: {points, box, mask: Float32Array | null, multimask}.
   *
   * Who asks what was asked just before gets the same answer: a click where the pointer rests has it already.
   */
  answer(prompt, signal) {
    const { points, box, mask, multimask } = prompt;
    const key = mask ? null : JSON.stringify([this.#id, points, box, multimask]);
    if (key && this.#memory.key === key) return this.#memory.found;
    const found = this.#answer(prompt, signal);
    this.#memory = { key, found };
    found.catch(() => { if (this.#memory.found === found) this.#memory = {}; });
    return found;
  }

  async #answer(prompt, signal) {
    const begun = performance.now();
    const { masks, scores, side } = await this.#predict(prompt, signal);
    this.milliseconds = performance.now() - begun;
    const candidates = masks.map((logits, n) => ({ logits, side, score: scores[n] }));
    return candidates.sort((a, b) => b.score - a.score);
  }

  async #predict(prompt, signal) {
    if (this.#decoder) {
      try {
        return await this.#here(prompt);
      } catch (error) {
        if (error.name === "AbortError") throw error;
        this.#give(error);
      }
    }
    return this.#there(prompt, signal);
  }

  /** The decoder in the browser failed: the server is asked from now on. */
  #give(error) {
    console.warn("the server decodes:", error);
    this.#decoder?.close();
    this.#decoder = null;
    this.where = "server";
  }

  async #here(prompt) {
    const { masks, scores, size } = await this.#decoder.predict(prompt);
    return { masks, scores, side: size[0] };
  }

  async #there({ points, box, mask, multimask }, signal) {
    const body = { points, box, multimask, mask: mask && base64(mask) };
    const answer = await patient(of(this.#id, "predict"), { body, signal });
    const { scores, shape: [count, side] } = JSON.parse(answer.headers.get("x-samlit"));
    const values = new Float32Array(await answer.arrayBuffer());
    const masks = Array.from({ length: count }, (_, n) => values.subarray(n * side * side, (n + 1) * side * side));
    return { masks, scores, side };
  }
}

function base64(values) {
  const bytes = new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
  let text = "";
  for (let i = 0; i < bytes.length; i += 8192) text += String.fromCharCode(...bytes.subarray(i, i + 8192));
  return btoa(text);
}
