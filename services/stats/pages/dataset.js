// One dataset: how big, how good, what is wrong; versions, labels, codes, shards, pictures.

import { ask, bytes, card, choose, count, day, facts, findings, make, numbers, percent, picture, table } from "./parts.js";
import { bars, columns, curve } from "./charts.js";

const SORTS = ["row", "bytes", "rows", "bytes_per_image", "path"];

const growthCard = (growth) => {
  const versions = growth.versions.slice().reverse();
  return card("Versions",
    columns(`Bytes of ${versions.length} versions: shared with the one before, and added`,
      versions.map((one) => ({ name: `v${one.version}`, parts: [one.shared_bytes, one.added_bytes] })), bytes),
    make("p", { class: "legend" }, make("span", {}, make("i", { class: "series0" }), "shared with the version before"),
      make("span", {}, make("i", { class: "series1" }), "added")),
    table("Versions, newest first", [["version"], ["committed (UTC)"], ["images", "number"], ["size", "number"], ["added", "number"], ["what changed"]],
      growth.versions.map((one) => [String(one.version), day(one.created), count(one.rows), bytes(one.bytes), bytes(one.added_bytes), one.message])));
};

const labelCard = (labels) => {
  if (!labels.largest_rows) return card("Labels", make("p", {}, "No row has a label."));
  return card("Labels",
    facts([["classes", `${count(labels.classes)}${labels.empty_classes ? `, ${count(labels.empty_classes)} of them empty` : ""}`],
      ["largest / smallest", `${labels.imbalance.toFixed(1)} (${count(labels.largest_rows)} / ${count(labels.smallest_rows)} rows)`],
      ["balance", `${percent(labels.balance)} of an even spread`],
      ["without a label", count(labels.unlabelled_rows)]]),
    bars(`Rows of the ${labels.labels.length} largest classes`, labels.labels.map((one) => ({
      name: one.label < 0 ? "(no label)" : one.name || String(one.label), value: one.rows, shown: count(one.rows) }))),
    labels.next ? make("p", { class: "quiet" }, "The largest classes are shown.") : null);
};

const codeCard = (codes) => card("Codes",
  facts([["used", `${count(codes.used_codes)} of ${count(codes.codes)}, ${count(codes.dead_codes)} dead`],
    ["perplexity", `${codes.perplexity.toFixed(1)} (${percent(codes.perplexity / codes.codes)} of the codebook)`],
    ["entropy", `${codes.entropy_bits.toFixed(2)} bits a token`]]),
  curve(`Share of each code by rank, from ${percent(codes.ranked_share[0])} down, ${codes.dead_codes} codes are dead`, codes.ranked_share,
    { shown: percent, first: "most frequent", last: `rank ${count(codes.codes)}`, scale: "log" }));

const storageCard = (storage) => {
  const rows = [...storage.splits, ...(storage.splits.length > 1 ? [storage.total] : [])];
  const folder = storage.folder;
  return card("Storage",
    table("By split", [["split"], ["images", "number"], ["size", "number"], ["B/image", "number"], ["entropy B", "number"], ["of source", "number"], ["of pixels", "number"], ["repeated", "number"]],
      rows.map((one) => [one.split, count(one.rows), bytes(one.bytes), one.bytes_per_image.toFixed(0), one.entropy_bytes_per_image.toFixed(0),
        one.share_of_source ? percent(one.share_of_source) : "unknown", percent(one.share_of_pixels), one.duplicate_rows == null ? "unknown" : count(one.duplicate_rows)])),
    folder ? facts([["folder", `${bytes(folder.bytes)} in ${count(folder.files)} files`],
      ["shared by versions", bytes(folder.shared_bytes)],
      ["orphaned", `${bytes(folder.orphaned_bytes)} in ${count(folder.orphaned_files)} files`],
      ["missing", count(folder.missing_files)]])
      : make("p", { class: "quiet" }, "The folder's files are being listed for the first time."));
};

const shardCard = (base, splits, tell) => {
  const place = make("div"), more = make("button", {}, "More shards");
  const chosen = { split: "", sort: "row", contains: "" };
  let rows = [], cursor = "", turn = 0;
  const show = async (again) => {
    const mine = ++turn;
    const query = new URLSearchParams({ limit: "20", sort: chosen.sort });
    for (const name of ["split", "contains"]) if (chosen[name]) query.set(name, chosen[name]);
    if (cursor && !again) query.set("cursor", cursor);
    const page = await ask(`${base}/shards?${query}`);
    if (mine !== turn) return; // something else was chosen meanwhile
    rows = again ? page.shards : [...rows, ...page.shards];
    cursor = page.next;
    more.hidden = !cursor;
    const shown = table(`Shards of version ${page.version}, ${count(rows.length)}${cursor ? " of more" : ""}`,
      [["split"], ["shard"], ["images", "number"], ["size", "number"], ["B/image", "number"], ["classes", "number"]],
      rows.map(({ split, shard }) => [split, shard.path.replace("shards/", ""), count(shard.rows), bytes(shard.bytes),
        (shard.bytes / Math.max(1, shard.rows)).toFixed(0), count(shard.labels?.labels.length ?? 0)]));
    place.replaceChildren(shown);
  };
  const set = (name) => (value) => { chosen[name] = value; show(true).catch(tell); };
  more.addEventListener("click", () => show(false).catch(tell));
  const sorts = SORTS.flatMap((name) => [[name, `${name}, up`], [`-${name}`, `${name}, down`]]);
  const node = card("Shards",
    make("div", { class: "controls" }, choose("split", [["", "all"], ...splits.map((one) => [one, one])], "", set("split")),
      choose("order", sorts, "row", set("sort")),
      make("label", {}, "path contains", make("input", { type: "search", onchange: (event) => set("contains")(event.target.value) }))),
    place, more);
  node.classList.add("wide");
  return [node, show(true)];
};

const samplesCard = async (base, splits, tell) => {
  const list = make("ul", { class: "gallery" }), views = make("div"), words = make("p", { class: "quiet" });
  const node = card("Samples");
  node.classList.add("wide");
  let turn = 0;
  const showViews = (found, sample, draw = 1) => {
    const where = `${base}/samples/${found.split}/${sample.row}/picture?version=${found.version}`;
    const again = make("button", { onclick: () => { showViews(found, sample, draw + 1); views.querySelector("button").focus(); } }, "Draw again");
    views.replaceChildren(make("h3", {}, `Row ${sample.row} under the augmentations`),
      make("div", { class: "controls" }, again, make("p", { class: "quiet", role: "status" }, `draw ${draw}`)),
      make("ul", { class: "gallery" }, ...found.views.map((view) => {
        const image = make("img", { alt: `row ${sample.row}, ${view}` });
        picture(image, `${where}&view=${view}&draw=${draw}`);
        return make("li", {}, image, make("p", {}, view));
      })));
  };
  const show = async (split) => {
    const mine = ++turn;
    const found = await ask(`${base}/samples?limit=12${split ? `&split=${split}` : ""}`);
    if (mine !== turn) return;
    words.textContent = found.undecodable;
    const shown = found.views.includes("original");
    list.replaceChildren(...found.samples.map((sample) => {
      const text = sample.class_name || (sample.label >= 0 ? `label ${sample.label}` : "no label");
      const about = make("p", {}, make("b", {}, text), make("br"), sample.key);
      if (!shown) return make("li", {}, about);
      const image = make("img", { alt: `row ${sample.row}: ${text}` });
      picture(image, `${base}/samples/${found.split}/${sample.row}/picture?version=${found.version}`);
      return make("li", {}, make("button", { "aria-label": `row ${sample.row}: ${text}; show it augmented`, onclick: () => showViews(found, sample) }, image), about);
    }));
    if (shown && found.samples.length && found.views.length > 1) showViews(found, found.samples[0]);
    else views.replaceChildren();
  };
  node.append(make("div", { class: "controls" },
    choose("split", splits.map((one) => [one, one]), splits[0], (value) => show(value).catch(tell))), words, list, views);
  await show("").catch((error) => { words.textContent = error.message; });
  return node;
};

export const showDataset = async (main, name, signal, tell) => {
  const base = `/v1/datasets/${encodeURIComponent(name)}`;
  const [summary, health, storage, growth, labels, codes] = await Promise.all([
    ask(base), ask(`${base}/health`), ask(`${base}/storage`), ask(`${base}/growth?limit=12`), ask(`${base}/labels?limit=12`), ask(`${base}/codes?limit=1`)]);
  if (signal.aborted) return;
  const [shards, read] = shardCard(base, summary.splits, tell);
  const wrong = make("div", {}, findings(health.findings)), stored = make("div", { class: "wide" }, storageCard(storage));
  const gallery = make("div", { class: "wide" });
  main.replaceChildren(make("p", {}, make("a", { href: "#/" }, "← all datasets")), make("h1", {}, name),
    make("p", { class: "quiet" }, `Version ${summary.version}, committed ${day(summary.created)} UTC. ${summary.message}`),
    numbers([
      ["of the pixels' storage", summary.pixel_bytes ? percent(summary.share_of_pixels) : "unknown", `${bytes(summary.bytes)} for ${bytes(summary.pixel_bytes)}`],
      ["images", count(summary.rows), `in ${count(summary.shards)} shards`],
      ["bytes an image", summary.bytes_per_image.toFixed(0), `entropy ${storage.total.entropy_bytes_per_image.toFixed(0)}`],
      ["perplexity", codes.perplexity.toFixed(0), `of ${count(codes.codes)} codes`],
    ]),
    card("What is wrong", wrong),
    make("div", { class: "grid" }, stored, growthCard(growth), labelCard(labels), codeCard(codes), shards, gallery));
  await read.catch(tell);
  gallery.replaceChildren(await samplesCard(base, summary.splits, tell));
  if (!storage.folder) {
    setTimeout(async () => { // listed beside the first question: ask once more
      if (signal.aborted) return;
      const [found, again] = await Promise.all([ask(`${base}/storage`), ask(`${base}/health`)]).catch(() => []);
      if (found) { stored.replaceChildren(storageCard(found)); wrong.replaceChildren(findings(again.findings)); }
    }, 3000);
  }
};
