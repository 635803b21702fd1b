// Charts as SVG. Each has a title and a sentence that says what it shows, for those who do not see it.

const SPACE = "http://www.w3.org/2000/svg";

const draw = (tag, attributes = {}, ...children) => {
  const node = document.createElementNS(SPACE, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
};

const WIDTH = 480, LEFT = 64, RIGHT = 8, TOP = 12;

const frame = (height, words, ...children) =>
  draw("svg", { viewBox: `0 0 ${WIDTH} ${height}`, role: "img", "aria-label": words }, draw("title", {}, words), ...children);

const text = (x, y, words, anchor = "start") => draw("text", { x, y, "text-anchor": anchor }, words);

// Horizontal bars: [{name, value, shown}], the longest first.
export const bars = (words, entries) => {
  const most = Math.max(...entries.map((one) => one.value), 1e-9), row = 22, left = 130, room = WIDTH - left - 80;
  return frame(entries.length * row + 4, words, ...entries.flatMap((one, at) => [
    text(left - 8, at * row + 16, one.name.length > 18 ? `${one.name.slice(0, 17)}…` : one.name, "end"),
    draw("rect", { class: "series0", x: left, y: at * row + 4, rx: 2, height: row - 8, width: Math.max(1, (one.value / most) * room) }),
    text(left + Math.max(1, (one.value / most) * room) + 6, at * row + 16, one.shown),
  ]));
};

// Columns stacked of several series: [{name, parts: [..]}], oldest first.
export const columns = (words, entries, shown) => {
  const height = 200, bottom = height - 24, totals = entries.map((one) => one.parts.reduce((a, b) => a + b, 0));
  const most = Math.max(...totals, 1), room = (WIDTH - LEFT - RIGHT) / entries.length, width = Math.min(48, room * 0.7);
  const y = (value) => bottom - (value / most) * (bottom - TOP);
  return frame(height, words, text(LEFT - 6, TOP + 8, shown(most), "end"), text(LEFT - 6, bottom, "0", "end"),
    draw("line", { class: "axis", x1: LEFT, x2: WIDTH, y1: bottom, y2: bottom }),
    ...entries.flatMap((one, at) => {
      const x = LEFT + at * room + (room - width) / 2;
      let sum = 0;
      const stack = one.parts.map((part, series) => {
        const from = y(sum);
        sum += part;
        return draw("rect", { class: `series${series}`, x, width, y: y(sum), height: Math.max(0, from - y(sum)) });
      });
      return [...stack, text(x + width / 2, height - 6, one.name, "middle")];
    }));
};

// A curve over positions: numbers; `scale` "log" shows shares over several powers of ten.
export const curve = (words, values, { shown, first, last, scale = "linear" }) => {
  const height = 200, bottom = height - 24;
  const known = scale === "log" ? values.filter((value) => value > 0) : values;
  const low = scale === "log" ? Math.log10(Math.min(...known, 1)) : 0;
  const high = scale === "log" ? Math.log10(Math.max(...known, 1e-12)) : Math.max(...known, 1e-9);
  const y = (value) => bottom - ((scale === "log" ? Math.log10(value) : value) - low) / Math.max(high - low, 1e-9) * (bottom - TOP);
  const x = (at) => LEFT + (at / Math.max(values.length - 1, 1)) * (WIDTH - LEFT - RIGHT);
  const points = values.flatMap((value, at) => (scale === "log" && value <= 0 ? [] : [`${x(at).toFixed(1)},${y(value).toFixed(1)}`]));
  const edge = scale === "log" ? [10 ** high, 10 ** low] : [high, 0];
  const children = [text(LEFT - 6, TOP + 8, shown(edge[0]), "end"), text(LEFT - 6, bottom, shown(edge[1]), "end"),
    draw("line", { class: "axis", x1: LEFT, x2: WIDTH, y1: bottom, y2: bottom }),
    text(LEFT, height - 6, first), text(WIDTH - RIGHT, height - 6, last, "end")];
  if (points.length) {
    const end = points.at(-1).split(",")[0], start = points[0].split(",")[0];
    children.push(draw("polygon", { class: "area", points: `${start},${bottom} ${points.join(" ")} ${end},${bottom}` }),
      draw("polyline", { class: "line", points: points.join(" ") }));
  }
  return frame(height, words, ...children);
};

// Parts of a whole in one bar: [{name, value}], shares of 1; what is left stays empty.
export const shares = (words, entries) => {
  let at = 0;
  return frame(26, words, draw("rect", { x: 0, y: 4, width: WIDTH, height: 18, class: "rest", rx: 3 }),
    ...entries.map((one, series) => {
      const part = draw("rect", { class: `series${series}`, x: at * WIDTH, y: 4, width: Math.max(0, one.value * WIDTH), height: 18 });
      at += one.value;
      return part;
    }));
};
