// What flows: runs that train, each with its rate as a curve that moves, and the cluster's jobs.

import { bytes, card, count, day, facts, make, ask, percent, span, table } from "./parts.js";
import { curve, shares } from "./charts.js";

const EVERY_MS = 2000, KEPT = 150;
const CLASSES = { running: "good", finished: "note", stopped: "note", stalled: "bad", failed: "bad", unreadable: "warning" };
const WAITS = [["storage", "storage_share"], ["recipe", "augmentation_share"], ["consumer (training)", "consumer_share"]];

const history = new Map(); // run -> [{at, rows, rate}]: kept over visits of this page

const note = (one) => {
  const seen = history.get(one.name) ?? [], at = Date.parse(one.updated) / 1000, last = seen.at(-1);
  if (last && at <= last.at) return seen;
  const rate = last && one.rows >= last.rows ? (one.rows - last.rows) / (at - last.at) : one.rows_per_second;
  seen.push({ at, rows: one.rows, rate });
  history.set(one.name, seen.slice(-KEPT));
  return history.get(one.name);
};

const streamCard = (one) => {
  const seen = note(one), alive = one.state === "running" || one.state === "stalled";
  const rates = seen.map((point) => point.rate), now = one.state === "stalled" ? 0 : rates.at(-1) ?? 0;
  const state = one.state === "stalled" ? `stalled, silent for ${span(one.silent_seconds)}` : one.state;
  const troubles = [[one.retries, "retry", "retries"], [one.refetches, "refetch", "refetches"],
    [one.quarantined, "shard left out", "shards left out"], [one.actor_restarts, "actor restarted", "actors restarted"]]
    .filter(([many]) => many).map(([many, one, more]) => `${count(many)} ${many === 1 ? one : more}`);
  const done = one.step_target ? one.step / one.step_target : 0;
  const pairs = [
    ["step", `${count(one.step)} of ${count(one.step_target)}`],
    ["left", one.state === "running" ? span(one.eta_seconds) : "–"],
    ["cache hits", `${percent(one.cache_hit_rate)} of ${bytes(one.bytes_cached + one.bytes_fetched)}`],
    ["workers", `${one.workers}${one.actors == null ? "" : `, ${one.actors} actors alive`}`],
    ["trouble", troubles.join(", ") || "none"],
    ["reads", `${one.stream || "–"}${one.recipe ? `, recipe ${one.recipe}` : ""}`],
    ["last word", `${day(one.updated)} UTC`],
  ];
  return [make("h2", {}, one.name, " ", make("span", { class: `tag ${CLASSES[one.state]}` }, state)),
    one.reason ? make("p", { class: "tag warning" }, one.reason) : null,
    make("p", { class: "headline" }, alive ? `${count(now)} /s` : count(one.rows),
      make("small", {}, alive ? `images now; ${count(one.rows_per_second)} /s since the start` : `images at ${count(one.rows_per_second)} /s`)),
    alive && rates.length > 1
      ? curve(`${one.name}: images a second, from ${count(rates[0])} to ${count(now)}`, rates,
        { shown: (value) => count(value), first: `${span(seen.at(-1).at - seen[0].at)} ago`, last: "now" })
      : null,
    make("div", { class: "bar", "aria-hidden": "true" }, Object.assign(make("i"), { style: `width:${Math.min(100, done * 100)}%` })),
    make("p", { class: "quiet" }, "Who waits for whom, shares of the time:"),
    shares(WAITS.map(([name, key]) => `waits for ${name} ${percent(one[key])}`).join(", "), WAITS.map(([name, key]) => ({ name, value: one[key] }))),
    make("p", { class: "legend" }, ...WAITS.map(([name, key], at) =>
      make("span", {}, make("i", { class: `series${at}` }), `${name} ${percent(one[key])}`))),
    facts(pairs)].filter((child) => child != null);
};

// What needs a person comes first, whenever it began: stalled, then running, then the newest.
const askStreams = async () => {
  const pages = await Promise.all(["?state=stalled&limit=20", "?state=running&limit=50", "?limit=50"].map((query) => ask(`/v1/streams${query}`)));
  const found = new Map(pages.flatMap((page) => page.streams).map((one) => [one.name, one]));
  const rank = (one) => ["stalled", "running"].indexOf(one.state) + 1 || 3;
  const streams = [...found.values()].sort((a, b) => rank(a) - rank(b) || (a.started < b.started) - (a.started > b.started));
  return { streams, more: pages.some((page) => page.next) };
};

const clusterCard = ({ cluster, jobs }) => {
  if (cluster.state === "not configured") {
    return card("Cluster", make("p", { class: "quiet" }, "No Ray dashboard was named: streams are read from the runs' folders alone."));
  }
  if (cluster.state !== "reachable") {
    return card("Cluster", make("p", { class: "tag bad" }, `not reached: ${cluster.reason}`),
      make("p", { class: "quiet" }, "Streams are read from the runs' folders alone; jobs and actors are not known."));
  }
  const rows = jobs.map((job) => [job.id, job.state, job.program, job.run, String(job.actors), day(job.started), job.ended ? day(job.ended) : ""]);
  return card("Cluster",
    facts([["nodes", `${cluster.nodes_alive} alive${cluster.nodes_dead ? `, ${cluster.nodes_dead} dead` : ""}`],
      ["processors", `${cluster.cpus} CPUs, ${cluster.gpus} GPUs`], ["actors alive", count(cluster.actors_alive)]]),
    rows.length ? table("Jobs, newest first", [["job"], ["state"], ["program"], ["run"], ["actors", "number"], ["started (UTC)"], ["ended (UTC)"]], rows)
      : make("p", {}, "No job was submitted."));
};

export const showStreams = async (main, signal, tell) => {
  const list = make("ul", { class: "cards" }), cluster = make("div"), words = make("p", { class: "quiet" });
  const cards = new Map(); // run -> [its card, what it shows]: one that says the same is left alone
  const cardOf = (one) => {
    const [node, shown] = cards.get(one.name) ?? [make("li", { class: "card" }), ""], said = JSON.stringify(one);
    if (said !== shown) node.replaceChildren(...streamCard(one));
    cards.set(one.name, [node, said]);
    return node;
  };
  const update = async () => {
    const [{ streams, more }, jobs] = await Promise.all([askStreams(), ask("/v1/jobs?limit=20")]);
    if (signal.aborted) return;
    const many = (state) => streams.filter((one) => one.state === state).length;
    words.textContent = streams.length
      ? `${many("stalled")} stalled, ${many("running")} running, ${streams.length}${more ? " of more" : ""} shown: stalled and running first, then the newest. Read every 2 s.`
      : "No run has a stream here: give `seit serve` the folder of the runs with --runs.";
    const shown = streams.map(cardOf);
    if (shown.length !== list.children.length || shown.some((node, at) => node !== list.children[at])) list.replaceChildren(...shown);
    cluster.replaceChildren(clusterCard(jobs));
  };
  await update();
  if (signal.aborted) return; // another page was asked for meanwhile
  main.replaceChildren(make("h1", {}, "Streams"), words, list, cluster);
  const again = async () => {
    if (signal.aborted) return;
    try {
      if (!document.hidden) { await update(); tell({ message: "" }); }
    } catch (error) {
      tell({ message: `These figures are old: ${error.message}` });
    }
    setTimeout(again, EVERY_MS);
  };
  setTimeout(again, EVERY_MS);
};
