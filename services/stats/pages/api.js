// Everything is set as text: no word of the document, or of an answer, is read as markup.
const make = (tag, text, ...children) => {
  const node = document.createElement(tag);
  if (text) node.textContent = text;
  node.append(...children);
  return node;
};

const fieldsOf = (schema, schemas) => {
  const name = schema?.$ref?.split("/").pop();
  const table = make("table");
  table.append(make("caption", name ? `Answer: ${name}` : "Answer: JSON"));
  for (const [field, about] of Object.entries(schemas[name]?.properties ?? {})) {
    const kind = about.items?.$ref ?? about.anyOf?.[0]?.$ref ?? about.items?.type ?? about.type ?? "";
    const list = about.type === "array" ? "list of " : "";
    table.append(make("tr", "", make("td", field), make("td", list + kind.split("/").pop())));
  }
  return table;
};

const tryOut = (path, parameters) => {
  const form = make("form"), shown = make("pre", "not asked yet");
  shown.setAttribute("aria-live", "polite");
  for (const parameter of parameters) {
    const input = make("input");
    input.name = parameter.name;
    input.required = parameter.required ?? false;
    input.placeholder = parameter.schema.default ?? "";
    form.append(make("label", `${parameter.name}: ${parameter.description ?? ""}`, input));
  }
  form.append(make("button", "Ask"));
  form.onsubmit = async (event) => {
    event.preventDefault();
    const query = new URLSearchParams();
    let url = path;
    for (const { name, in: place } of parameters) {
      const value = form.elements[name].value;
      if (place === "path") url = url.replace(`{${name}}`, encodeURIComponent(value));
      else if (value) query.set(name, value);
    }
    const answer = await fetch(query.size ? `${url}?${query}` : url);
    shown.textContent = `${answer.status}\n${JSON.stringify(await answer.json(), null, 2)}`;
  };
  return make("div", "", form, shown);
};

const show = (api) => {
  document.getElementById("about").textContent = `${api.info.description} Version ${api.info.version}.`;
  for (const [path, operations] of Object.entries(api.paths)) {
    for (const [method, operation] of Object.entries(operations)) {
      const schema = operation.responses["200"].content?.["application/json"]?.schema;
      document.getElementById("operations").append(
        make("section", "", make("h2", `${method.toUpperCase()} ${path}`),
          make("p", operation.description), fieldsOf(schema, api.components.schemas),
          tryOut(path, operation.parameters ?? [])));
    }
  }
};

fetch("/openapi.json").then((answer) => answer.json()).then(show).catch((error) => {
  document.getElementById("about").textContent = `The description cannot be read: ${error}`;
});
