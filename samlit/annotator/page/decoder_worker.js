/* What decoder.js has done in its worker: two graphs, one run for each image and one for each prompt. */

let ort, sessions, model, image;

const does = {
  /** Load the runtime and the graphs; "wasm" or "webgpu", where they run. */
  async open({ base, threads, gpu }) {
    model = await (await fetched(`${base}model.json`)).json();
    if (gpu && (await navigator.gpu?.requestAdapter?.())) {
      try {
        await start(base, threads, "wasm");
        const wanted = await trial();
        await start(base, threads, "webgpu");
        if (near(await trial(), wanted)) return "webgpu";
      } catch (error) {
        console.warn("WebGPU is not used:", error);
      }
    }
    await start(base, threads, "wasm");
    return "wasm";
  },

  /** Run what depends on the image alone. */
  async image({ values, size, embedding }) {
    const scale = model.image_size / Math.max(...size);
    const inside = size.map((side) => Math.floor(side * scale + 0.5));
    const given = { image_embeddings: tensor(values, [1, ...embedding]) };
    image = { prepared: await sessions.prepare.run(given), scale: [inside[1] / size[1], inside[0] / size[0]] };
  },

  /** Run the rest. */
  async predict({ points = [], box = null, mask = null, multimask }) {
    if (!image) throw new Error("there is no image yet");
    const [sx, sy] = image.scale;
    const places = points.map(([x, y, label]) => [x * sx, y * sy, label > 0 ? 1 : 0]);
    if (box) places.push([box[0] * sx, box[1] * sy, 2], [box[2] * sx, box[3] * sy, 3]);
    else places.push([0, 0, -1]);
    const low = 4 * model.grid;
    const { low_res_masks, iou_predictions } = await sessions.prompt.run(
      only(sessions.prompt.inputNames, {
        ...image.prepared,
        point_coords: tensor(Float32Array.from(places.flatMap(([x, y]) => [x, y])), [1, places.length, 2]),
        point_labels: tensor(Float32Array.from(places, ([, , label]) => label), [1, places.length]),
        mask_input: tensor(mask ?? new Float32Array(low * low), [1, 1, low, low]),
        has_mask_input: tensor(Float32Array.of(mask ? 1 : 0), [1]),
      }),
    );
    const [logits, iou, [, count, rows, columns]] = [low_res_masks.data, iou_predictions.data, low_res_masks.dims];
    const answers = multimask ? Array.from({ length: count - 1 }, (_, n) => n + 1) : [0];
    const area = rows * columns;
    return {
      masks: answers.map((n) => logits.slice(n * area, (n + 1) * area)),
      scores: answers.map((n) => iou[n]),
      size: [rows, columns],
    };
  },
};

async function start(base, threads, where) {
  await sessions?.prepare.release();
  await sessions?.prompt.release();
  ort = await import(`${base}ort/ort.${where}.min.mjs`);
  ort.env.wasm.wasmPaths = `${base}ort/`;
  ort.env.wasm.numThreads = self.crossOriginIsolated ? threads : 1;
  ort.env.logLevel = "error";
  const options = { executionProviders: [where], graphOptimizationLevel: "all", logSeverityLevel: 3 };
  sessions = {};
  for (const name of ["prepare", "prompt"]) {
    const bytes = new Uint8Array(await (await fetched(`${base}${name}.onnx`)).arrayBuffer());
    sessions[name] = await ort.InferenceSession.create(bytes, options);
  }
}

/** The answer to one click about an embedding that is made up. */
async function trial() {
  const { channels, grid, image_size: side } = model;
  const values = Float32Array.from({ length: channels * grid * grid }, (_, n) => Math.sin(n));
  await does.image({ values, size: [side, side], embedding: [channels, grid, grid] });
  const { masks: [found] } = await does.predict({ points: [[side / 2, side / 2, 1]], multimask: false });
  image = null;
  return found;
}

/** Whether two answers differ by less than a hundredth of the largest logit. */
function near(a, b) {
  let most = 0, apart = 0;
  for (let n = 0; n < a.length; n++) {
    most = Math.max(most, Math.abs(b[n]));
    apart = Math.max(apart, Math.abs(a[n] - b[n]));
  }
  return apart <= 0.01 * most; // NaN is not
}

function only(names, given) {
  return Object.fromEntries(names.map((name) => [name, given[name]]));
}

function tensor(values, shape) {
  return new ort.Tensor("float32", values, shape);
}

async function fetched(url) {
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(`${url}: ${answer.status}`);
  return answer;
}

// One after the other: a prompt finds the image that was set before it.
let last = Promise.resolve();
self.onmessage = ({ data: { number, what, given } }) => {
  last = last.then(async () => {
    try {
      const found = await does[what](given);
      self.postMessage({ number, found }, (found?.masks ?? []).map((one) => one.buffer));
    } catch (error) {
      self.postMessage({ number, error: String(error?.message ?? error) });
    }
  });
};
