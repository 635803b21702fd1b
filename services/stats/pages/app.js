// The pages: "#/" datasets, "#/datasets/NAME" one of them, "#/streams" what flows.

import { bytes, count, day, facts, findings, make, ask, percent, tokenForm } from "./parts.js";
import { showDataset } from "./dataset.js";
import { showStreams } from "./streams.js";

const main = document.getElementById("main");
const told = document.getElementById("told");
let page = new AbortController();

const datasetCard = (one, signal) => {
  const known = one.pixel_bytes > 0;
  const state = make("div", { "aria-live": "off" });
  ask(`/v1/datasets/${encodeURIComponent(one.name)}/health`).then((health) => {
    if (signal.aborted) return;
    const serious = health.findings.filter((finding) => finding.severity !== "note");
    state.replaceChildren(findings(serious.slice(0, 3)));
    if (serious.length > 3) state.append(make("p", { class: "quiet" }, `and ${serious.length - 3} more`));
  }).catch((error) => state.replaceChildren(make("p", { class: "tag warning" }, error.message)));
  return make("li", { class: "card" },
    make("h2", {}, make("a", { href: `#/datasets/${encodeURIComponent(one.name)}` }, one.name)),
    make("p", { class: "headline" }, known ? percent(one.share_of_pixels) : bytes(one.bytes),
      make("small", {}, known ? `of the pixels' storage: ${bytes(one.bytes)} instead of ${bytes(one.pixel_bytes)}` : "on storage")),
    make("div", { class: "bar", "aria-hidden": "true" },
      Object.assign(make("i"), { style: `width:${Math.min(100, one.share_of_pixels * 100)}%` })),
    facts([
      ["images", `${count(one.rows)}, ${one.bytes_per_image.toFixed(0)} B each`],
      ["tokens", `${one.spec.grid_height}×${one.spec.grid_width} of ${count(one.spec.codes)} codes (${one.tokenizer_kind})`],
      ["version", `${one.version}, ${day(one.created)} UTC`],
      ["shards", count(one.shards)],
    ]), state);
};

const showDatasets = async (signal) => {
  let cursor = "", turn = 0;
  const list = make("ul", { class: "cards" }), more = make("button", { hidden: true }, "More datasets");
  const next = async () => {
    const mine = ++turn;
    const found = await ask(`/v1/datasets?limit=24&cursor=${encodeURIComponent(cursor)}`);
    if (signal.aborted || mine !== turn) return found;
    list.append(...found.datasets.map((one) => datasetCard(one, signal)));
    cursor = found.next;
    more.hidden = !cursor;
    return found;
  };
  const first = await next();
  if (signal.aborted) return;
  more.addEventListener("click", () => next().catch(tell));
  const empty = make("p", {}, "No dataset stands here yet: `seit ingest` makes one below the folder that `seit serve` was given.");
  main.replaceChildren(make("h1", {}, "Datasets"), first.datasets.length ? list : empty, more);
};

const tell = (error) => { told.textContent = error.message; };

// What is no escape of a URL is taken as it stands: the service says that nothing is called so.
const decoded = (part) => {
  try { return decodeURIComponent(part); } catch { return part; }
};

const route = async () => {
  page.abort();
  page = new AbortController();
  const { signal } = page, path = location.hash.slice(1) || "/";
  told.textContent = "";
  const parts = path.split("/").filter(Boolean).map(decoded);
  for (const link of document.querySelectorAll("nav a")) {
    const here = link.hash === `#/${parts[0] === "streams" ? "streams" : ""}` && link.pathname === location.pathname;
    if (here) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const name = parts[0] === "datasets" ? parts[1] : parts[0] === "streams" ? "Streams" : "Datasets";
  document.title = `${name} – SeiT++ data service`;
  try {
    if (parts[0] === "datasets" && parts[1]) await showDataset(main, parts[1], signal, tell);
    else if (parts[0] === "streams") await showStreams(main, signal, tell);
    else await showDatasets(signal);
    if (!signal.aborted) main.setAttribute("data-shown", path);
  } catch (error) {
    if (signal.aborted) return;
    if (error.status === 401) main.replaceChildren(make("h1", {}, "Who asks?"), tokenForm(route, error.message));
    else main.replaceChildren(make("h1", {}, "This cannot be shown"), make("p", { role: "alert" }, error.message));
  }
};

addEventListener("hashchange", () => { route().then(() => main.focus({ preventScroll: true })); scrollTo(0, 0); });
route();
