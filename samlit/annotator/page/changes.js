/* What a change does to an image's annotations: the page shows at once what the server will have made of it. */

/** A whole number that nobody else chose. */
export function unique() {
  const [high, low] = crypto.getRandomValues(new Uint32Array(2));
  return (high % 2 ** 20) * 2 ** 32 + low + 1;
}

/** The annotations after some changes; the given ones stay as they are.
 *
 * @param document As the server has it.
 * @param changes In their order.
 */
export function after(document, changes) {
  const rows = new Map(document.annotations.map((row) => [row.id, row]));
  const rejected = new Set((document.samlit.rejected ?? []).map((one) => one.id));
  let done = document.samlit.done === true;
  for (const change of changes) {
    const row = rows.get(change.id);
    const revision = (row?.revision ?? 0) + 1;
    if (change.op === "done" || change.op === "undone") done = change.op === "done";
    else if (change.op === "reject") rejected.add(change.proposal);
    else if (change.op === "unreject") rejected.delete(change.proposal);
    else if (change.op === "add" ? !row : change.op === "replace" && row) rows.set(change.id, made(change, revision));
    else if (row && change.op === "delete" && !row.deleted) rows.set(row.id, { ...row, revision, deleted: true });
    else if (row && change.op === "restore" && row.deleted) rows.set(row.id, { ...row, revision, deleted: false });
  }
  const all = [...rows.values()].map((row, place) => ({ ...row, place })); // what was added first has its place for ever
  return { rows: all.filter((row) => !row.deleted), deleted: all.filter((row) => row.deleted), rejected, done };
}

function made(change, revision) {
  const { id, size, counts, phrase, predicted_iou, provenance } = change;
  return { id, segmentation: { size, counts }, phrase, predicted_iou, provenance, revision };
}

/** Whether a document holds what a replace asked for already: it was sent twice. */
export function holds(document, change) {
  const row = document.annotations.find((one) => one.id === change.id);
  return row?.segmentation.counts === change.counts && (row.phrase ?? "") === (change.phrase ?? "") && !row.deleted;
}
