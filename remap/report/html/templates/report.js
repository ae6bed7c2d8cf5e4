"use strict";
(function () {
  // Everything from files goes into the page as text, never as markup.
  const all = JSON.parse(document.getElementById("data").textContent);
  const count = all.flags.length, cards = new Set(all.cards);
  const by = id => document.getElementById(id);
  const table = by("table"), head = table.tHead, body = table.tBodies[0];
  // Flags stand beside the labels: whoever reads these must see them without scrolling.
  let last = 0;
  all.columns.forEach((column, i) => { if (column.kind === "value") last = i + 1; });
  const put = (list, item) => [...list.slice(0, last), item, ...list.slice(last)];
  const columns = put(all.columns, {name: "flags", title: "flags", kind: "flags", about: "what gave reason to note"});
  const data = put(all.data, all.flags);
  const bits = Object.keys(all.names).map(Number);
  const state = {sort: -1, down: false, page: 0, size: 50};
  let shown = [], haystack = null;

  const make = (tag, text, kind) => {
    const node = document.createElement(tag);
    if (text !== undefined) node.textContent = text;
    if (kind) node.className = kind;
    return node;
  };
  const minus = (value, digits) => value === null || value === undefined ? "" : value.toFixed(digits).replace("-", "\u2212");
  const named = flags => bits.filter(bit => flags & bit).map(bit => all.names[bit]);
  const numeric = column => column.kind === "number" || column.kind === "value";

  function header() {
    const row = make("tr");
    columns.forEach((column, i) => {
      const cell = make("th", undefined, numeric(column) ? "num" : ""), button = make("button", column.title);
      cell.scope = "col";
      button.type = "button";
      if (column.about) button.title = column.about;
      button.addEventListener("click", () => {
        state.down = state.sort === i ? !state.down : false;
        state.sort = i;
        order();
      });
      cell.append(button);
      row.append(cell);
    });
    const last = make("th", "card");
    last.scope = "col";
    row.append(last);
    head.append(row);
    columns.forEach((column, i) => {
      if (!numeric(column)) return;
      const option = make("option", column.title);
      option.value = i;
      by("column").append(option);
    });
  }

  function words() {  // names and messages of every star in lower case, made at the first search
    if (haystack) return haystack;
    const texts = columns.map((column, i) => column.kind === "text" ? i : -1).filter(i => i >= 0);
    haystack = Array.from({length: count}, (_, row) => texts.map(i => data[i][row]).join("\n").toLowerCase());
    return haystack;
  }

  function choose() {
    const wanted = by("find").value.trim().toLowerCase(), flag = by("flag").value, only = by("only").value;
    const from = by("from").value === "" ? -Infinity : Number(by("from").value);
    const to = by("to").value === "" ? Infinity : Number(by("to").value);
    const values = data[by("column").value], limited = values && (from > -Infinity || to < Infinity);
    const texts = wanted ? words() : null;
    shown = [];
    for (let row = 0; row < count; row++) {
      const flags = all.flags[row];
      if (flag === "0" && flags !== 0 || flag === "-1" && flags === 0 || Number(flag) > 0 && !(flags & Number(flag))) continue;
      if (only && !cards.has(row)) continue;
      if (limited && (values[row] === null || values[row] < from || values[row] > to)) continue;
      if (texts && !texts[row].includes(wanted)) continue;
      shown.push(row);
    }
    order();
  }

  function order() {
    const column = columns[state.sort], sign = state.down ? -1 : 1;
    if (column) {
      const values = data[state.sort];
      const compare = column.kind === "text" ? new Intl.Collator(undefined, {numeric: true}).compare : (a, b) => a - b;
      shown.sort((a, b) => {  // what is not known comes last, either way
        const x = values[a], y = values[b], gone = v => v === null || v === "";
        if (gone(x) || gone(y)) return gone(x) - gone(y) || a - b;
        return sign * compare(x, y) || a - b;
      });
    } else {
      shown.sort((a, b) => a - b);
    }
    Array.from(head.rows[0].cells).forEach((cell, i) => {
      if (i < columns.length) cell.setAttribute("aria-sort", i !== state.sort ? "none" : state.down ? "descending" : "ascending");
    });
    state.page = 0;
    show();
  }

  function show() {
    const pages = Math.max(1, Math.ceil(shown.length / state.size)), start = state.page * state.size;
    const rows = shown.slice(start, start + state.size).map(line);
    body.replaceChildren(...rows);
    const range = shown.length ? `, rows ${start + 1} to ${start + rows.length} (page ${state.page + 1} of ${pages})` : "";
    by("status").textContent = `${shown.length} of ${count} stars${range}`;
    by("back").disabled = state.page === 0;
    by("forth").disabled = state.page >= pages - 1;
  }

  function line(row) {
    const out = make("tr");
    columns.forEach((column, i) => {
      const value = data[i][row];
      if (column.kind === "flags") {
        const cell = make("td");
        named(value).forEach(name => cell.append(make("span", name, "tag"), " "));
        out.append(cell);
      } else if (numeric(column)) {
        const cell = make("td", minus(value, column.digits), "num"), low = all.low[column.name], high = all.high[column.name];
        if (low && high && low[row] !== null && high[row] !== null)
          cell.append(" ", make("span", `${minus(low[row], column.digits)} to ${minus(high[row], column.digits)}`, "ends"));
        out.append(cell);
      } else {
        out.append(make("td", value, "wide"));
      }
    });
    const cell = make("td");
    if (cards.has(row)) {
      const link = make("a", "open");
      link.href = `#card-${row}`;
      link.setAttribute("aria-label", `Open the card of ${data[0] ? data[0][row] : row + 1}`);
      cell.append(link);
    }
    out.append(cell);
    return out;
  }

  function open() {  // the card that the address names
    const card = /^#card-\d+$/.test(location.hash) ? by(location.hash.slice(1)) : null;
    if (!card) return;
    card.open = true;
    card.querySelector("summary").focus({preventScroll: true});
    card.scrollIntoView();
  }

  const later = (call, pause) => {
    let timer = 0;
    return () => { clearTimeout(timer); timer = setTimeout(call, pause); };
  };
  ["find", "from", "to"].forEach(id => by(id).addEventListener("input", later(choose, 120)));
  ["flag", "column", "only"].forEach(id => by(id).addEventListener("change", choose));
  by("clear").addEventListener("click", () => {
    ["find", "from", "to", "flag", "only"].forEach(id => { by(id).value = ""; });
    state.sort = -1;
    choose();
  });
  by("size").addEventListener("change", () => { state.size = Number(by("size").value); state.page = 0; show(); });
  by("back").addEventListener("click", () => { state.page--; show(); });
  by("forth").addEventListener("click", () => { state.page++; show(); });
  const theme = by("theme");
  theme.hidden = false;
  theme.addEventListener("click", () => {
    const root = document.documentElement, now = root.dataset.theme ||
      (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
    root.dataset.theme = now === "dark" ? "light" : "dark";
  });
  document.addEventListener("click", event => {  // a second click on a card's link opens it again
    const link = event.target.closest && event.target.closest("a[href^='#card-']");
    if (link && link.getAttribute("href") === location.hash) open();
  });
  addEventListener("hashchange", open);
  addEventListener("keydown", event => {  // "/" is the usual key for a search
    if (event.key !== "/" || event.ctrlKey || event.metaKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
    event.preventDefault();
    by("find").focus();
  });
  header();
  choose();
  open();
})();
