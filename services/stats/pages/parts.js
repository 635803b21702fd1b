// Elements, figures in words, and questions to the service. All foreign text is set as text.

export const make = (tag, attributes = {}, ...children) => {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child != null));
  return node;
};

const UNITS = ["B", "kB", "MB", "GB", "TB", "PB"];

export const bytes = (count) => {
  let value = count, unit = 0;
  while (value >= 1000 && unit < UNITS.length - 1) { value /= 1000; unit += 1; }
  return `${unit ? value.toPrecision(3) : value} ${UNITS[unit]}`;
};

export const count = (value) => Math.round(value).toLocaleString("en");

export const percent = (share) => {
  if (!share) return "0 %";
  const value = share * 100;
  return `${value < 0.01 ? value.toExponential(1) : value < 10 ? value.toPrecision(2) : value.toFixed(0)} %`;
};

export const span = (seconds) => {
  if (seconds == null) return "–";
  for (const [unit, sign] of [[86400, "d"], [3600, "h"], [60, "min"]]) {
    if (seconds >= 2 * unit) return `${Math.round(seconds / unit)} ${sign}`;
  }
  return `${Math.round(seconds)} s`;
};

export const day = (text) => text.slice(0, 16).replace("T", " ");

const TOKEN = "seit-token";

const asked = () => {
  const token = sessionStorage.getItem(TOKEN);
  return token ? { headers: { authorization: `Bearer ${token}` } } : {};
};

// The answer as it comes, also one that refuses. It is asked for beside this page: a proxy may have
// both below a path of its own.
export const sent = (path) => fetch(`.${path}`, asked());

export const fetched = async (path) => {
  const answer = await sent(path);
  if (answer.ok) return answer;
  const problem = await answer.json().catch(() => ({ detail: answer.statusText }));
  throw Object.assign(new Error(problem.detail), { status: answer.status });
};

export const ask = async (path) => (await fetched(path)).json();

// A picture by fetch, as an <img> could not show the token.
export const picture = async (image, path) => {
  try {
    const url = URL.createObjectURL(await (await fetched(path)).blob());
    image.onload = () => URL.revokeObjectURL(url);
    image.src = url;
  } catch (error) {
    image.alt = `${image.alt}: ${error.message}`;
  }
};

export const tokenForm = (again, wrong) => {
  // What cannot stand in a header would be an error of the browser, which nothing here could mend.
  const input = make("input", { type: "password", autocomplete: "off", required: true,
    pattern: "\\s*[!-~]+\\s*", title: "the one word that `seit token` has shown" });
  const form = make("form", { class: "card controls" },
    make("label", {}, "This service asks for a token (`seit token` makes them)", input),
    make("button", {}, "Go on"),
    wrong && sessionStorage.getItem(TOKEN) ? make("p", { role: "alert" }, wrong) : null);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    sessionStorage.setItem(TOKEN, input.value.trim());
    again();
  });
  return form;
};

export const facts = (pairs) => make("dl", { class: "facts" },
  ...pairs.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));

export const numbers = (pairs) => make("div", { class: "numbers" },
  ...pairs.map(([name, value, more]) => make("div", {},
    make("span", { class: "quiet" }, name), make("strong", {}, value),
    more ? make("span", { class: "quiet" }, more) : null)));

export const findings = (list) => list.length
  ? make("ul", { class: "findings" }, ...list.map((one) =>
    make("li", { class: one.severity },
      make("b", {}, `${one.severity}: `), one.text)))
  : make("p", { class: "tag good" }, "Nothing wrong was found");

export const table = (caption, columns, rows) => make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
  make("table", {}, make("caption", {}, caption),
    make("thead", {}, make("tr", {}, ...columns.map(([name, kind]) =>
      name instanceof Node ? name : make("th", { scope: "col", class: kind ?? "" }, name)))),
    make("tbody", {}, ...rows.map((cells) => make("tr", {}, ...cells.map((cell, at) =>
      make("td", { class: columns[at][1] ?? "" }, cell)))))));

export const card = (title, ...children) => make("section", { class: "card" }, make("h2", {}, title), ...children);

export const choose = (name, options, value, change) => make("label", {}, name,
  make("select", { onchange: (event) => change(event.target.value) },
    ...options.map(([one, shown]) => make("option", { value: one, selected: one === value }, shown))));
