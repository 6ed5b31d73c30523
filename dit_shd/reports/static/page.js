// What pages do beyond showing: sort, copy, enlarge, read charts, explore attention maps, reload while a run trains.
// No library: each part is short, a page stays small, and nothing is fetched. Every part works by keyboard.
"use strict";

const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};
const digits = (value) => (value === 0 ? "0" : Number(value.toPrecision(3)).toString());

// ---- tables: a heading sorts by its column; the tinted first line (the teacher) and lines of scale keep their places
function sortable(table) {
  const body = table.tBodies[0];
  const fixed = (row) => row.matches(".tinted, .scale");
  const key = (row, column) => {
    const text = row.cells[column].textContent.trim();
    const number = parseFloat(text.replace("−", "-").replace(/,/g, ""));
    return Number.isNaN(number) ? text.toLowerCase() : number;
  };
  const before = (a, b) => {
    if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
    return a < b ? -1 : a > b ? 1 : 0;
  };
  all("th button", table).forEach((button) =>
    button.addEventListener("click", () => {
      const heading = button.closest("th");
      const column = heading.cellIndex;
      const down = heading.getAttribute("aria-sort") === "ascending";
      all("th", table).forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...body.rows];
      const moved = rows.filter((row) => !fixed(row));
      moved.sort((a, b) => (down ? -1 : 1) * before(key(a, column), key(b, column)));
      body.append(...rows.map((row) => (fixed(row) ? row : moved.shift())));
    }),
  );
}

// ---- copy buttons, on commands and hashes
async function copy(button) {
  const text = button.parentElement.querySelector("code").textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = make("textarea", { value: text });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  button.textContent = "copied";
  setTimeout(() => (button.textContent = "copy"), 1500);
}

// ---- enlarge a figure; Escape closes
function enlarge(button) {
  const figure = button.closest("figure").cloneNode(true);
  all("button.enlarge", figure).forEach((inner) => inner.remove());
  all("svg.chart", figure).forEach(readable);
  const close = make("button", { className: "tool close", textContent: "close", type: "button" });
  const dialog = make("dialog", {}, close, figure);
  dialog.setAttribute("aria-label", "enlarged figure");
  close.addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.addEventListener("close", () => (dialog.remove(), button.focus()));
  document.body.append(dialog);
  dialog.showModal();
}

// ---- charts: the numbers of the nearest mark, by pointer or by arrow keys
const tip = make("div", { className: "tip", hidden: true });
tip.setAttribute("role", "status");

function marksOf(chart) {
  const [xs, ys] = [chart.dataset.x, chart.dataset.y].map((text) => (text ? text.split(" ").map(Number) : null));
  const inverse = ([low, high, first, last, log], pixel) => {
    const share = (pixel - first) / (last - first);
    return log ? low * (high / low) ** share : low + share * (high - low);
  };
  const marks = all("[data-tip]", chart).map((element) => {
    const box = element.getBBox();
    return { x: box.x + box.width / 2, y: box.y + box.height / 2, text: element.dataset.tip, series: "" };
  });
  all("polyline[data-name]", chart).forEach((line) =>
    [...line.points].forEach((point) => {
      const numbers = `${chart.dataset.across} ${digits(inverse(xs, point.x))}: ${digits(inverse(ys, point.y))}`;
      marks.push({ x: point.x, y: point.y, text: `${line.dataset.name}, ${numbers}`, series: line.dataset.name });
    }),
  );
  return marks;
}

function readable(chart) {
  let marks = null;
  let at = -1;
  const ring = document.createElementNS("http://www.w3.org/2000/svg", "circle");
  ring.setAttribute("r", 5);
  ring.setAttribute("class", "found");
  const hide = () => (ring.remove(), (tip.hidden = true));
  const show = (number) => {
    at = number;
    const mark = marks[at];
    ring.setAttribute("cx", mark.x);
    ring.setAttribute("cy", mark.y);
    chart.append(ring);
    tip.textContent = mark.text;
    tip.hidden = false;
    (chart.closest("dialog") ?? document.body).append(tip);
    const place = ring.getBoundingClientRect();
    const left = Math.min(place.right + 8, window.innerWidth - tip.offsetWidth - 8);
    tip.style.left = `${Math.max(8, left)}px`;
    tip.style.top = `${Math.max(8, place.top - tip.offsetHeight - 6)}px`;
  };
  chart.addEventListener("pointermove", (event) => {
    marks ??= marksOf(chart);
    const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(chart.getScreenCTM().inverse());
    const distance = (mark) => (mark.x - point.x) ** 2 + (mark.y - point.y) ** 2;
    let best = -1;
    marks.forEach((mark, i) => {
      if (best < 0 || distance(mark) < distance(marks[best])) best = i;
    });
    best >= 0 && distance(marks[best]) < 1600 ? show(best) : hide();
  });
  chart.addEventListener("pointerleave", hide);
  chart.addEventListener("blur", hide);
  chart.addEventListener("keydown", (event) => {
    marks ??= marksOf(chart);
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const jump = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") return hide();
    if (!marks.length || !(step || jump)) return;
    event.preventDefault();
    let next = at;
    if (step) next = (at + step + marks.length) % marks.length;
    else {
      const names = [...new Set(marks.map((mark) => mark.series))];
      const name = names[(names.indexOf(marks[Math.max(at, 0)].series) + jump + names.length) % names.length];
      const x = marks[Math.max(at, 0)].x;
      const others = marks.map((mark, i) => i).filter((i) => marks[i].series === name);
      next = others.reduce((a, b) => (Math.abs(marks[b].x - x) < Math.abs(marks[a].x - x) ? b : a));
    }
    show(next);
  });
}

// ---- the explorer of attention maps: layer, timestep, query token and head, all recorded before
const palette = (anchors) => {
  const colours = anchors.map((hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)));
  return (share) => {
    const place = Math.min(Math.max(share, 0), 1) * (colours.length - 1);
    const i = Math.min(Math.floor(place), colours.length - 2);
    return colours[i].map((c, k) => Math.round(c + (place - i) * (colours[i + 1][k] - c)));
  };
};

async function inflate(text) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function explore(root) {
  const data = JSON.parse(root.querySelector("script").textContent);
  const colour = palette(data.palette);
  for (const layer of data.layers) layer.levels = await inflate(layer.values);
  const decoded = async (source) => {
    const image = Object.assign(new Image(), { src: source });
    await image.decode();
    return image;
  };
  const pictures = await Promise.all(data.pictures.map(decoded));
  const state = { layer: data.layer, time: data.time, query: 0, map: 0, key: null, row: null };
  const part = (name) => root.querySelector(`.${name}`);
  const query = part("query").querySelector("canvas, .words");
  const { words, prompt } = data;
  const large = part("detail").querySelector("canvas");
  const buttons = [];

  const layer = () => data.layers[state.layer];
  const maps = () => data.groups.flatMap((group) => group.maps.map((name) => `${group.name} ${name}`));
  const sizes = () => ({ q: layer().tokens.length, h: maps().length, m: layer().keys[0] * layer().keys[1] });
  const values = (map, row = state.query) => {
    const { q, h, m } = sizes();
    const start = ((state.time * q + row) * h + map) * m;
    const top = layer().tops[state.time];
    return Array.from(layer().levels.subarray(start, start + m), (level) => top * (level / 255) ** 2);
  };
  const highest = () => (words.length ? layer().tops[state.time] : Math.max(...maps().flatMap((_, map) => values(map)), 1e-12));

  function paint(canvas, map, top) {
    if (words.length) return paintWhole(canvas, map, top);
    const numbers = values(map);
    const board = sized(canvas, layer().keys, 112);
    numbers.forEach((value, i) => {
      board.context.fillStyle = `rgb(${colour(Math.sqrt(value / top)).join(" ")})`;
      board.context.fillRect(...board.corner(i), board.wide, board.high);
    });
    return board;
  }

  // of a text: all recorded query tokens down, keys across, the query's row framed
  function paintWhole(canvas, map, top) {
    const { q, m } = sizes();
    const whole = Object.assign(document.createElement("canvas"), { width: m, height: q });
    const image = whole.getContext("2d").createImageData(m, q);
    for (let row = 0; row < q; row++)
      values(map, row).forEach((value, key) => image.data.set([...colour(Math.sqrt(value / top)), 255], 4 * (row * m + key)));
    whole.getContext("2d").putImageData(image, 0, 0);
    const side = Math.max(3, Math.round(240 / m));
    Object.assign(canvas, { width: m * side, height: q * side });
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.drawImage(whole, 0, 0, canvas.width, canvas.height);
    context.strokeStyle = "#31d0c6";
    context.lineWidth = 2;
    context.strokeRect(1, state.query * side - 1, canvas.width - 2, side + 2);
    const corner = (cell) => [(cell % m) * side, Math.floor(cell / m) * side];
    return { context, wide: side, high: side, corner };
  }

  // a canvas of rows and columns of cells, which are higher than wide where all tokens are in one line
  function sized(canvas, [rows, columns], side) {
    const wide = Math.max(1, Math.round(side / Math.max(rows, columns)));
    const high = rows === 1 ? Math.max(wide, 20) : wide;
    canvas.width = columns * wide;
    canvas.height = rows * high;
    const corner = (cell) => [(cell % columns) * wide, Math.floor(cell / columns) * high];
    return { context: canvas.getContext("2d"), wide, high, corner };
  }

  function frame({ context, wide, high, corner }, cell, style) {
    context.strokeStyle = style;
    context.lineWidth = Math.max(2, wide / 8);
    const [x, y] = corner(cell);
    context.strokeRect(x + 1, y + 1, Math.max(1, wide - 2), high - 2);
  }

  function drawWords() {
    const [numbers, top] = [values(state.map), highest()];
    all("span", query).forEach((word, token) => {
      word.style.setProperty("--bar", `${(13 * Math.sqrt(numbers[token] / top)).toFixed(1)}px`);
      word.classList.toggle("asked", token === layer().tokens[state.query]);
    });
  }

  function drawQuery() {
    if (words.length) return drawWords();
    const { grid, tokens } = layer();
    if (prompt.length) {
      const board = sized(query, layer().keys, 224);
      board.context.imageSmoothingEnabled = false;
      return board.context.drawImage(pictures[0], 0, 0, query.width, query.height);
    }
    const board = sized(query, grid, 224);
    const context = board.context;
    context.imageSmoothingEnabled = false;
    context.fillStyle = "#888";
    context.fillRect(0, 0, query.width, query.height);
    if (pictures.length) context.drawImage(pictures[state.time], 0, 0, query.width, query.height);
    context.fillStyle = "#31d0c6";
    const places = tokens.length < grid[0] * grid[1] ? tokens.map(board.corner) : [];
    places.forEach(([x, y]) => context.fillRect(x + board.wide / 2 - 1, y + board.high / 2 - 1, 3, 3));
    frame(board, tokens[state.query], "#31d0c6");
  }

  function draw() {
    drawQuery();
    const top = highest();
    buttons.forEach((button, map) => {
      const board = paint(button.querySelector("canvas"), map, top);
      if (layer().aligned && !words.length) frame(board, layer().tokens[state.query], "#31d0c6");
      button.setAttribute("aria-pressed", String(map === state.map));
      const note = data.notes?.[state.layer]?.[state.time]?.[map];
      button.querySelector("span").textContent = data.groups.flatMap((group) => group.maps)[map] + (note ? `: ${note}` : "");
    });
    part("detail").querySelector("h3").textContent = maps()[state.map].replace(/^heads /, "");
    const ends = all(".bar span", root);
    [0, top / 4, top].forEach((value, i) => (ends[i].textContent = digits(value)));
    if (part("slide")) part("slide").querySelector("output").textContent = `t = ${data.timesteps[state.time]}`;
    part("query").querySelector("output").textContent = prompt[state.query] ?? `${named(layer().tokens[state.query])} of ${layer().grid[0] * layer().grid[1]}`;
    read();
  }

  const named = (token) => `token ${token}${words.length ? ` “${words[token]}”` : ""}`;
  const row = () => state.row ?? state.query;

  function read() {
    const board = paint(large, state.map, highest());
    if (state.key !== null) frame(board, words.length ? row() * sizes().m + state.key : state.key, "#fff");
    const numbers = values(state.map, row());
    const most = numbers.indexOf(Math.max(...numbers));
    const key = (at) => (words.length ? named(at) : `${layer().pooled ? "a token of " : ""}${prompt.length ? "image" : "key"} ${layer().pooled ? "area" : "token"} ${at}`);
    const share = (at) => `${(100 * numbers[at]).toPrecision(3)}% ${prompt.length ? "of" : "to"} ${key(at)}`;
    const from = words.length ? `from ${named(layer().tokens[row()])}: ` : "";
    part("readout").textContent = `${from}most: ${share(most)}` + (state.key === null ? "" : `; here: ${share(state.key)}`);
  }

  const cell = (canvas, event, [rows, columns]) => {
    const box = canvas.getBoundingClientRect();
    const place = (share, count) => Math.min(count - 1, Math.max(0, Math.floor(share * count)));
    return place((event.clientY - box.top) / box.height, rows) * columns + place((event.clientX - box.left) / box.width, columns);
  };
  const nearest = (token) => {
    const columns = layer().grid[1];
    const distance = (a) => ((a % columns) - (token % columns)) ** 2 + (Math.floor(a / columns) - Math.floor(token / columns)) ** 2;
    return layer().tokens.reduce((best, a, i, tokens) => (distance(a) < distance(tokens[best]) ? i : best), 0);
  };
  const moved = (event, at, [rows, columns]) => {
    const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
    if (!step) return null;
    event.preventDefault();
    const [y, x] = [Math.floor(at / columns) + step[0], (at % columns) + step[1]];
    return y < 0 || x < 0 || y >= rows || x >= columns ? at : y * columns + x;
  };

  function choose(changes) {
    Object.assign(state, changes);
    if (Object.keys(changes).every((name) => name === "key" || name === "row")) return read();
    state.query = Math.min(state.query, layer().tokens.length - 1);
    draw();
  }
  // an arrow that finds no recorded token between goes on to the next one in its direction
  function walk(event) {
    const { grid, tokens } = layer();
    let at = tokens[state.query];
    for (let i = 0; i < Math.max(...grid); i++) {
      const next = moved(event, at, grid);
      if (next === null || next === at) return;
      at = next;
      if (tokens.includes(at)) break;
    }
    choose({ query: nearest(at) });
  }

  data.groups.forEach((group) => {
    const grid = make("div", { className: "maps" });
    group.maps.forEach(() => {
      const map = buttons.length;
      const button = make("button", { className: "map", type: "button" }, make("canvas"), make("span"));
      button.addEventListener("click", () => choose({ map }));
      buttons.push(button);
      grid.append(button);
    });
    part("groups").append(make("div", {}, make("h3", { textContent: group.name }), grid));
  });
  all("input[name=word]", root).forEach((radio, i) => radio.addEventListener("change", () => choose({ query: i })));
  all("input[name=layer]", root).forEach((radio, i) => radio.addEventListener("change", () => choose({ layer: i, key: null, row: null })));
  part("slide")?.querySelector("input").addEventListener("input", (event) => choose({ time: Number(event.target.value) }));
  // of a text a cell of the large map is a query token and a key
  const board = () => (words.length ? [sizes().q, sizes().m] : layer().keys);
  const place = (at) => (words.length ? { key: at % sizes().m, row: Math.floor(at / sizes().m) } : { key: at });
  if (words.length) {
    query.append(...words.map((word) => make("span", { textContent: word })));
    const token = (event) => all("span", query).indexOf(event.target);
    query.addEventListener("click", (event) => token(event) >= 0 && choose({ query: nearest(token(event)) }));
    large.addEventListener("click", (event) => choose({ query: place(cell(large, event, board())).row }));
  } else if (!prompt.length) query.addEventListener("click", (event) => choose({ query: nearest(cell(query, event, layer().grid)) }));
  if (!prompt.length) query.addEventListener("keydown", walk);
  large.addEventListener("pointermove", (event) => choose(place(cell(large, event, board()))));
  large.addEventListener("pointerleave", () => choose({ key: null, row: null }));
  large.addEventListener("keydown", (event) => {
    const at = moved(event, words.length ? row() * sizes().m + (state.key ?? 0) : (state.key ?? 0), board());
    if (at !== null) choose(place(at));
  });
  state.query = nearest(data.token);
  state.map = 0;
  draw();
  root.dataset.ready = "yes";
}

// ---- a page of a run that is still training comes again; where the reader was is kept
function reload(seconds) {
  const place = `scroll ${location.pathname}`;
  const kept = sessionStorage.getItem(place);
  if (kept !== null) window.scrollTo(0, Number(kept));
  const button = document.querySelector("button.pause");
  let paused = sessionStorage.getItem(`paused ${location.pathname}`) === "yes";
  const words = () => {
    if (button) button.textContent = paused ? "refresh again" : "hold still";
  };
  button?.addEventListener("click", () => {
    paused = !paused;
    sessionStorage.setItem(`paused ${location.pathname}`, paused ? "yes" : "no");
    words();
  });
  words();
  setInterval(() => {
    if (paused || document.querySelector("dialog[open]") || !tip.hidden) return;
    sessionStorage.setItem(place, String(window.scrollY));
    location.reload();
  }, 1000 * seconds);
}

document.addEventListener("DOMContentLoaded", () => {
  all("table").forEach(sortable);
  all("button.copy").forEach((button) => button.addEventListener("click", () => copy(button)));
  all("button.enlarge").forEach((button) => button.addEventListener("click", () => enlarge(button)));
  all("svg.chart").forEach(readable);
  all(".explorer").forEach(explore);
  if (document.body.dataset.reload) reload(Number(document.body.dataset.reload));
  const contents = document.querySelector("details.contents");
  if (contents && window.matchMedia("(min-width: 78rem)").matches) contents.open = true;
});
