// What the browser does alone: moving the epoch, playing, keys, links, and sorting tables.
(function () {
  "use strict";

  const state = { epoch: 0, first: 0, last: 0, timer: null, wanted: 0, asked: -Infinity };
  const none = () => window.dash_clientside.no_update;

  function setEpoch(epoch) {
    state.wanted = Math.min(Math.max(epoch, state.first), state.last);
    state.asked = performance.now();
    window.dash_clientside.set_props("epoch", { value: state.wanted });
  }

  // Two quick steps are two: the page may not have followed the first one yet.
  function step(by) {
    setEpoch((performance.now() - state.asked < 500 ? state.wanted : state.epoch) + by);
  }

  // Position of the last recorded epoch up to the chosen one.
  function frameAt(epochs, epoch) {
    let frame = 0;
    epochs.forEach((recorded, i) => { if (recorded <= epoch) frame = i; });
    return frame;
  }

  function moveRun(panel, epoch) {
    const frame = frameAt(JSON.parse(panel.dataset.epochs), epoch);
    const said = panel.querySelector(".said");
    if (said) said.textContent = JSON.parse(panel.dataset.said)[frame];
    panel.querySelectorAll(".map").forEach((map) => {
      const { columns, width, height, limits } = map.dataset;
      const x = (frame % columns) * width, y = Math.floor(frame / columns) * height;
      map.querySelector(".sprite").style.backgroundPosition = `-${x}px -${y}px`;
      map.querySelector(".limit").textContent = JSON.parse(limits)[frame];
    });
  }

  function moveBars(panel, epoch) {
    const epochs = JSON.parse(panel.dataset.epochs), frame = frameAt(epochs, epoch);
    panel.querySelector(".probable-at").textContent = `after epoch ${epochs[frame]}`;
    const values = JSON.parse(panel.dataset.bars)[frame];
    panel.querySelectorAll(".bar").forEach((bar, i) => {
      bar.querySelector(".fill").style.width = `${100 * values[i]}%`;
      bar.querySelector("output").textContent = values[i].toFixed(2);
    });
  }

  function moveCursor(id, epoch) {
    const plot = document.querySelector(`#${id} .js-plotly-plot`);
    const shapes = plot && plot.layout && plot.layout.shapes;
    if (!window.Plotly || !shapes || !shapes.length || shapes[0].x0 === epoch) return;
    window.Plotly.relayout(plot, { "shapes[0].x0": epoch, "shapes[0].x1": epoch });
  }

  function apply() {
    document.querySelectorAll(".run").forEach((panel) => moveRun(panel, state.epoch));
    document.querySelectorAll(".probable").forEach((panel) => moveBars(panel, state.epoch));
    const now = document.getElementById("epoch-now");
    if (now) now.textContent = `epoch ${state.epoch}`;
  }

  // On a narrow screen the controls fold away once, so that the maps come first.
  function fold() {
    const controls = document.getElementById("controls");
    if (!controls || controls.dataset.folded || window.innerWidth > 820) return;
    controls.dataset.folded = "yes";
    controls.open = false;
  }

  let pending = false;
  function applyCursors() {
    if (pending) return;
    pending = true;
    requestAnimationFrame(() => {
      pending = false;
      moveCursor("curves", state.epoch);
      moveCursor("matrix", state.epoch);
    });
  }

  function stop() {
    clearInterval(state.timer);
    state.timer = null;
    const button = document.getElementById("play");
    if (button) window.dash_clientside.set_props("play", { children: "▶ play" });
  }

  function toggle() {
    if (state.timer) { stop(); return "▶ play"; }
    state.timer = setInterval(() => {
      if (!document.getElementById("epoch")) { clearInterval(state.timer); state.timer = null; return; }
      setEpoch(state.epoch >= state.last ? state.first : state.epoch + 1);
    }, 350);
    return "❚❚ pause";
  }

  function markThumb() {
    const box = document.querySelector("#probe, #probe input");
    const chosen = box ? Number(box.value) : -1;
    document.querySelectorAll("#thumbs .thumb").forEach((thumb, i) => {
      thumb.setAttribute("aria-pressed", String(i === chosen));
    });
  }

  function replaceQuery(pairs) {
    const query = new URLSearchParams();
    pairs.forEach(([name, value]) => {
      if (Array.isArray(value)) value.forEach((one) => query.append(name, one));
      else if (value !== null && value !== undefined && value !== "") query.append(name, value);
    });
    window.history.replaceState(window.history.state, "", `${window.location.pathname}?${query}`);
  }

  // Keys work everywhere but in controls that use them themselves.
  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
    if (!document.getElementById("epoch")) return;
    const own = "input, textarea, select, [contenteditable], [role=slider], [role=listbox], [role=option], [role=radio], [role=dialog]";
    if (event.target.closest && event.target.closest(own)) {
      if (event.key !== " " || !event.target.closest("[role=slider]")) return;
    }
    if (event.key === "ArrowLeft") step(-1);
    else if (event.key === "ArrowRight") step(1);
    else if (event.key === " " && !(event.target.closest && event.target.closest("button, summary, a"))) {
      window.dash_clientside.set_props("play", { children: toggle() });
    } else return;
    event.preventDefault();
  });

  function cell(value) {
    if (value === null) return "";
    if (typeof value !== "number" || Number.isInteger(value)) return String(value);
    return String(Number(value.toPrecision(4)));
  }

  function compare(a, b) {
    if (a === null || b === null) return (a === null) - (b === null);
    return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true });
  }

  function quoted(value) {
    let text = value === null ? "" : String(value);
    // What spreadsheets would take for a formula is text.
    if (typeof value === "string" && /^[=+\-@\t\r]/.test(text)) text = `'${text}`;
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  }

  // The points of a figure: a row each, of a matrix one per cell.
  function points(plot) {
    const rows = [];
    plot.data.forEach((trace) => {
      if (trace.hoverinfo === "skip") return;
      const axes = [trace.name || "", trace.xaxis || "x"];
      if (trace.type === "heatmap") {
        trace.z.forEach((line, i) => line.forEach((z, j) => rows.push([...axes, trace.x[j], trace.y[i], z])));
      } else {
        const base = trace.base || 0;
        trace.x.forEach((x, i) => rows.push([...axes, x === null ? null : x + base, trace.y[i], null]));
      }
    });
    return { columns: ["series", "panel", "x", "y", "value"], rows };
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest && event.target.closest("button[data-save]");
    if (!button) return;
    const name = button.dataset.graph, plot = document.querySelector(`#${name} .js-plotly-plot`);
    if (!plot || !window.Plotly) return;
    const { clientWidth: width, clientHeight: height } = plot;
    if (button.dataset.save === "png") window.Plotly.downloadImage(plot, { format: "png", scale: 2, filename: name, width, height });
    else save(name, points(plot));
  });

  function save(name, table) {
    const lines = [table.columns, ...table.rows].map((row) => row.map(quoted).join(","));
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([lines.join("\n") + "\n"], { type: "text/csv" }));
    link.download = `${name}.csv`;
    link.click();
    URL.revokeObjectURL(link.href);
  }

  function element(tag, text, parent) {
    const made = document.createElement(tag);
    if (text !== null) made.textContent = text;
    parent.append(made);
    return made;
  }

  const PAGE = 15;
  const orders = {};

  function showTable(name, table) {
    const place = document.getElementById(`table-${name}`);
    if (!place) return;
    place.replaceChildren();
    if (!table.rows.length) { element("p", "nothing recorded", place); return; }
    const order = orders[name] || (orders[name] = { column: null, down: false, page: 0 });
    const at = table.columns.indexOf(order.column);
    const numbered = table.rows.map((row, i) => [row, table.texts ? table.texts[i] : row.map(cell)]);
    const lines = at < 0 ? numbered : numbered.sort(([a], [b]) => {
      // What is undefined stays at the end, whichever way the rest is sorted.
      const turned = order.down && a[at] !== null && b[at] !== null;
      return (turned ? -1 : 1) * compare(a[at], b[at]);
    });
    const rows = lines.map(([row]) => row);
    const pages = Math.ceil(rows.length / PAGE);
    order.page = Math.min(order.page, pages - 1);
    const wide = element("div", null, place);
    wide.className = "wide";
    const drawn = element("table", null, wide);
    const head = element("tr", null, element("thead", null, drawn));
    table.columns.forEach((column, i) => {
      const sorted = i === at;
      const th = element("th", null, head);
      th.setAttribute("aria-sort", sorted ? (order.down ? "descending" : "ascending") : "none");
      if (rows.some((row) => typeof row[i] === "number")) th.className = "number";
      const button = element("button", column.replaceAll("_", " ") + (sorted ? (order.down ? " ▼" : " ▲") : ""), th);
      button.type = "button";
      button.onclick = () => {
        order.down = sorted ? !order.down : false;
        order.column = column;
        order.page = 0;
        showTable(name, table);
      };
    });
    const body = element("tbody", null, drawn);
    lines.slice(order.page * PAGE, (order.page + 1) * PAGE).forEach(([row, texts]) => {
      const line = element("tr", null, body);
      row.forEach((value, i) => {
        const td = element("td", texts[i], line);
        if (typeof value === "number") td.className = "number";
        else if (texts[i].length > 44) td.className = "long";
      });
    });
    const foot = element("div", null, place);
    foot.className = "row";
    const turn = (text, by) => {
      const button = element("button", text, foot);
      button.type = "button";
      button.disabled = order.page + by < 0 || order.page + by >= pages;
      button.onclick = () => { order.page += by; showTable(name, table); };
    };
    if (pages > 1) { turn("‹ back", -1); turn("next ›", 1); }
    const cut = table.total > rows.length ? ` (the first ${rows.length} of ${table.total})` : "";
    element("span", `${rows.length} rows${cut}${pages > 1 ? `, page ${order.page + 1} of ${pages}` : ""}`, foot);
    const button = element("button", "CSV", foot);
    button.type = "button";
    button.onclick = () => save(name, { ...table, rows });
  }

  window.dash_clientside = Object.assign({}, window.dash_clientside, {
    epochlens: {
      move: function (epoch, last) {
        state.epoch = epoch === null || epoch === undefined ? state.epoch : epoch;
        state.last = last;
        fold();
        apply();
        applyCursors();
        // A new drawing may reach the page only after this call.
        requestAnimationFrame(() => { apply(); setTimeout(() => { apply(); applyCursors(); }, 60); });
        return state.epoch;
      },
      link: function (run, other, probe, methods, scale, change, reference, average, epoch) {
        replaceQuery(Object.entries({ run, other, probe, epoch, scale, change, reference, average, method: methods }));
        return epoch;
      },
      cost_link: function (model, side, channels, classes, images, steps, samples) {
        replaceQuery(Object.entries({ model, side, channels, classes, images, steps, samples }));
        return steps;
      },
      model_link: function (run, weights, image, target, methods) {
        replaceQuery(Object.entries({ run, weights, image, target, method: methods }));
        return image;
      },
      fit: function (figure) {
        // A graph that follows its width has no height of its own, and would collapse without one.
        return { height: `${figure.layout.height}px` };
      },
      jump: function (click) {
        return click && click.points.length ? Math.round(click.points[0].x) : none();
      },
      play: function (clicks) {
        return clicks ? toggle() : none();
      },
      random: function (clicks, last) {
        return clicks && last > 0 ? Math.floor(Math.random() * (last + 1)) : none();
      },
      mark: function () {
        // Thumbnails reach the page only after this call.
        requestAnimationFrame(() => { markThumb(); setTimeout(markThumb, 60); });
        return 0;
      },
      thumb: function () {
        const by = window.dash_clientside.callback_context.triggered;
        if (!by.length || !by[0].value) return none();
        return JSON.parse(by[0].prop_id.replace(/\.n_clicks$/, "")).index;
      },
      tables: function (tables) {
        Object.entries(tables || {}).forEach(([name, table]) => showTable(name, table));
        return 0;
      },
    },
  });
})();
