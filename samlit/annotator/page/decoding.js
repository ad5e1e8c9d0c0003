/* Answers to prompts: by the decoder in the browser where it is there, else by the server. */

import { ask, of, patient } from "./api.js";

/** What answers prompts.
 *
 * @param project As the server tells it.
 */
export async function open(project) {
  if (project.decoder === "browser") {
    try {
      await ask("/decoder/prompt.onnx", { method: "HEAD" });
      const { open: start } = await import("./decoder.js");
      const threads = crossOriginIsolated ? Math.min(navigator.hardwareConcurrency || 1, 4) : 1;
      return new Decoding(await start("/decoder", { threads }));
    } catch (error) {
      console.warn("the server decodes:", error);
    }
  }
  return new Decoding(null);
}

/** The answers about one image at a time; its candidates are {logits: Float32Array, side, score}, the surest first. */
class Decoding {
  #decoder;
  #id = null;
  #last = Promise.resolve();

  constructor(decoder) {
    this.#decoder = decoder;
    this.where = decoder ? "browser" : "server";
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
    signal?.throwIfAborted();
    const answer = await patient(of(id, "embedding"), { method: this.#decoder ? "GET" : "HEAD", signal });
    const { embedding, size, inside, frame } = JSON.parse(answer.headers.get("x-samlit"));
    if (this.#decoder) await this.#decoder.image(await answer.arrayBuffer(), { size, embedding });
    signal?.throwIfAborted();
    this.#id = id;
    this.milliseconds = Infinity;
    return { frame, inside, low: 4 * embedding[1] };
  }

  /** The candidates for a prompt in pixels of the image: {points, box, mask: Float32Array | null, multimask}. */
  async answer(prompt, signal) {
    const begun = performance.now();
    const { masks, scores, side } = await (this.#decoder ? this.#here(prompt) : this.#there(prompt, signal));
    this.milliseconds = performance.now() - begun;
    const candidates = masks.map((logits, n) => ({ logits, side, score: scores[n] }));
    return candidates.sort((a, b) => b.score - a.score);
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
