// The API for people: what /openapi.json describes, each path with a form to try it.

import { ask, bytes, make, sent, tokenForm } from "./parts.js";

const about = document.getElementById("about"), main = document.getElementById("operations");

const fieldsOf = (schema, schemas) => {
  const name = schema?.$ref?.split("/").pop();
  const table = make("table", {}, make("caption", {}, name ? `Answer: ${name}` : "Answer: no fields"));
  for (const [field, about] of Object.entries(schemas[name]?.properties ?? {})) {
    const kind = about.items?.$ref ?? about.anyOf?.[0]?.$ref ?? about.items?.type ?? about.type ?? "";
    const list = about.type === "array" ? "list of " : "";
    table.append(make("tr", {}, make("td", {}, field), make("td", {}, list + kind.split("/").pop())));
  }
  return table;
};

// The answer in words, whatever it is: JSON as it came, of anything else how much.
const told = async (url) => {
  const answer = await sent(url), kind = answer.headers.get("content-type") ?? "";
  if (kind.endsWith("json")) return `${answer.status}\n${JSON.stringify(await answer.json(), null, 2)}`;
  return `${answer.status} ${kind}, ${bytes((await answer.blob()).size)}`;
};

const tryOut = (path, parameters) => {
  const form = make("form"), shown = make("pre", { "aria-live": "polite" }, "not asked yet");
  for (const { name, required, schema, description } of parameters) {
    const input = make("input", { name, required: required ?? false, placeholder: schema.default ?? "" });
    form.append(make("label", {}, `${name}: ${description ?? ""}`, input));
  }
  form.append(make("button", {}, "Ask"));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const query = new URLSearchParams();
    let url = path;
    for (const { name, in: place } of parameters) {
      const value = form.elements[name].value;
      if (place === "path") url = url.replace(`{${name}}`, encodeURIComponent(value));
      else if (value) query.set(name, value);
    }
    shown.textContent = await told(query.size ? `${url}?${query}` : url)
      .catch((error) => `The service does not answer: ${error.message}`);
  });
  return make("div", {}, form, shown);
};

const show = (api) => {
  about.textContent = `${api.info.description} Version ${api.info.version}.`;
  main.replaceChildren();
  for (const [path, operations] of Object.entries(api.paths)) {
    for (const [method, operation] of Object.entries(operations)) {
      const schema = operation.responses["200"].content?.["application/json"]?.schema;
      main.append(make("section", {}, make("h2", {}, `${method.toUpperCase()} ${path}`),
        make("p", {}, operation.description), fieldsOf(schema, api.components.schemas),
        tryOut(path, operation.parameters ?? [])));
    }
  }
};

const read = async () => {
  try {
    show(await ask("/openapi.json"));
  } catch (error) {
    if (error.status === 401) main.replaceChildren(tokenForm(read, error.message));
    about.textContent = error.status === 401
      ? "The description of the API needs a token, as its answers do."
      : `The description cannot be read: ${error.message}`;
  }
};

read();
