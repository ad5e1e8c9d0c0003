/* The decoder in the browser, in a worker of its own, so that the page never waits for it. */

/** Start a decoder.
 *
 * @param {string} base Address under which prepare.onnx, prompt.onnx, model.json and ort/ lie.
 * @param {{threads?: number, gpu?: boolean}} options How many threads; more than one wants a page that is isolated. Whether
 *     WebGPU is tried: it is taken where its first answer is the processor's.
 * @returns {Promise<Decoder>}
 */
export async function open(base, { threads = 1, gpu = false } = {}) {
  const decoder = new Decoder();
  try {
    decoder.where = await decoder.ask("open", { base: new URL(`${base}/`, location.href).href, threads, gpu });
  } catch (error) {
    decoder.close();
    throw error;
  }
  return decoder;
}

class Decoder {
  #worker = new Worker(new URL("./decoder_worker.js", import.meta.url), { type: "module" });
  #asked = new Map();
  #number = 0;
  #busy = null; // the prompt that is being answered
  #waits = null; // the one that comes after it

  constructor() {
    this.#worker.onmessage = ({ data: { number, found, error } }) => {
      const { resolve, reject } = this.#asked.get(number);
      this.#asked.delete(number);
      if (error) reject(new Error(error));
      else resolve(found);
    };
    this.#worker.onerror = (event) => this.#fail(new Error(event.message || "the decoder's worker cannot be started"));
  }

  /** Have the worker do something. */
  ask(what, given, moved = []) {
    return new Promise((resolve, reject) => {
      const number = this.#number++;
      this.#asked.set(number, { resolve, reject });
      this.#worker.postMessage({ number, what, given }, moved);
    });
  }

  /** Prepare an image; the embedding's buffer is taken over.
   *
   * @param {Float32Array | ArrayBuffer} embedding (C, h, w).
   * @param {{size: number[], embedding: number[]}} about Rows and columns of the image in pixels; the embedding's shape.
   */
  async image(embedding, about) {
    const values = embedding instanceof ArrayBuffer ? new Float32Array(embedding) : embedding;
    await this.ask("image", { values, ...about }, [values.buffer]);
  }

  /** Answer a prompt about the image.
   *
   * A prompt that waits for another's answer gives way to a newer one: its promise is rejected with an AbortError.
   *
   * @param {{points?: number[][], box?: number[] | null, mask?: Float32Array | null, multimask: boolean}} prompt Points are
   *     [x, y, 1 or 0] and a box [x0, y0, x1, y1], in pixels of the image; a mask is low-res logits of an earlier answer.
   * @returns {Promise<{masks: Float32Array[], scores: number[], size: number[]}>} Low-res logits and the IoU that the model
   *     expects of each; their rows and columns.
   */
  predict(prompt) {
    return new Promise((resolve, reject) => {
      this.#waits?.reject(new DOMException("a newer prompt took its place", "AbortError"));
      this.#waits = { prompt, resolve, reject };
      if (!this.#busy) this.#next();
    });
  }

  async #next() {
    while (this.#waits) {
      this.#busy = this.#waits;
      this.#waits = null;
      try {
        this.#busy.resolve(await this.ask("predict", this.#busy.prompt));
      } catch (error) {
        this.#busy.reject(error);
      }
      this.#busy = null;
    }
  }

  /** End the worker; what is being answered is rejected. */
  close() {
    this.#worker.terminate();
    this.#fail(new DOMException("the decoder is closed", "AbortError"));
  }

  #fail(error) {
    this.#waits?.reject(error);
    this.#waits = null;
    for (const { reject } of this.#asked.values()) reject(error);
    this.#asked.clear();
  }
}
