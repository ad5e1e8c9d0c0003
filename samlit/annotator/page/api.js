/* Requests to the server. */

/** The server said no, in one line. */
export class Refused extends Error {
  constructor(status, line) {
    super(line);
    this.status = status;
  }
}

/** The server cannot be reached. */
export class Lost extends Error {}

/** An answer of the server.
 *
 * @param path Of the address.
 * @param body Posted as JSON if given.
 * @throws Refused, Lost; or the signal's AbortError.
 */
export async function ask(path, { body, method, signal } = {}) {
  const options = { method, signal, cache: "no-store" };
  if (body !== undefined) {
    Object.assign(options, { method: "POST", body: JSON.stringify(body), headers: { "content-type": "application/json" } });
  }
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Lost("the server cannot be reached");
  }
  if (!answer.ok) throw new Refused(answer.status, (await answer.text().catch(() => "")).trim() || `status ${answer.status}`);
  return answer;
}

/** An answer that may be in the making: 202 is "ask again". */
export async function patient(path, options = {}) {
  for (;;) {
    const answer = await ask(path, options);
    if (answer.status !== 202) return answer;
    await pause(400);
    options.signal?.throwIfAborted();
  }
}

export const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

/** The address of what belongs to an image. */
export const of = (id, what = "") => `/api/images/${id}${what && "/"}${what}`;
