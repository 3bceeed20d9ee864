/* Filters, sorting, search and keys of the table of models. Plain script: it must run from a disk. */
"use strict";
(function () {
  var table = document.getElementById("matrix");
  if (!table) return;
  document.documentElement.classList.add("js");
  var body = table.tBodies[0];
  var rows = Array.prototype.slice.call(body.rows);
  var heads = Array.prototype.slice.call(table.tHead.rows[0].cells);
  var form = document.getElementById("filters");
  var shown = document.getElementById("shown");
  var nothing = document.getElementById("nothing");
  var ids = ["q", "f-state", "f-family", "f-tier", "f-subject", "f-evidence", "f-check", "f-word"];
  var fields = {};
  ids.forEach(function (id) { fields[id] = document.getElementById(id); });
  form.hidden = false;

  function value(id) { return fields[id] ? fields[id].value : ""; }

  rows.forEach(function (row) {
    row.dataset.q = [row.cells[0].textContent, row.dataset.subject, row.dataset.state, row.dataset.kind,
      row.dataset.text].join(" ").toLowerCase();
  });
  var columns = {};
  heads.forEach(function (head, at) {
    if (head.classList.contains("check")) columns[head.textContent.trim()] = at;
  });

  function family(row, wanted) {
    var split = wanted.indexOf(":");
    return row.dataset[wanted.slice(0, split)] === wanted.slice(split + 1);
  }

  function ended(row, check, word) {
    if (check) return row.cells[columns[check]].dataset.w === word;
    return Object.keys(columns).some(function (c) { return row.cells[columns[c]].dataset.w === word; });
  }

  function matches(row) {
    var words = value("q").toLowerCase().split(/\s+/);
    var d = row.dataset;
    return words.every(function (w) { return d.q.indexOf(w) >= 0; }) &&
      (!value("f-state") || d.state === value("f-state")) &&
      (!value("f-family") || family(row, value("f-family"))) &&
      (!value("f-tier") || d.tier === value("f-tier")) &&
      (!value("f-subject") || d.subject === value("f-subject")) &&
      (!value("f-evidence") || d.evidence === value("f-evidence")) &&
      (!value("f-check") || !!row.cells[columns[value("f-check")]].dataset.w) &&
      (!value("f-word") || ended(row, value("f-check"), value("f-word")));
  }

  function filter() {
    var count = 0;
    rows.forEach(function (row) {
      row.hidden = !matches(row);
      if (!row.hidden) count += 1;
    });
    var all = rows.length + (rows.length === 1 ? " port" : " ports");
    shown.textContent = count === rows.length ? all : count + " of " + all;
    nothing.hidden = count > 0 || rows.length === 0;
    remember();
  }

  /* What is filtered and sorted is in the address, so that a view can be kept and sent. */
  function remember() {
    var parts = ids.filter(value).map(function (id) { return id + "=" + encodeURIComponent(value(id)); });
    var sorted = heads.findIndex(function (h) { return h.getAttribute("aria-sort") !== "none" && h.hasAttribute("aria-sort"); });
    if (sorted >= 0) parts.push("sort=" + (heads[sorted].getAttribute("aria-sort") === "ascending" ? "" : "-") + sorted);
    var hash = parts.length ? "#" + parts.join("&") : "";
    if (hash !== location.hash && (hash || /[=]/.test(location.hash))) {
      history.replaceState(null, "", hash || location.pathname + location.search);
    }
  }

  function recall() {
    if (!/=/.test(location.hash)) return;
    location.hash.slice(1).split("&").forEach(function (part) {
      var at = part.indexOf("="), id = part.slice(0, at), text = decodeURIComponent(part.slice(at + 1));
      if (id === "sort") {
        var head = heads[Math.abs(parseInt(text, 10))];
        if (head && head.dataset.sort) sort(head, text[0] === "-" ? "descending" : "ascending");
      } else if (fields[id]) fields[id].value = text;
    });
  }

  function key(row, at, kind) {
    var cell = row.cells[at];
    if (cell.classList.contains("c")) return ORDER.indexOf(cell.dataset.w);
    var text = cell.dataset.v !== undefined ? cell.dataset.v : cell.textContent.trim();
    return kind === "number" ? (text === "" ? NaN : parseFloat(text.replace("inf", "Infinity"))) : text;
  }

  var ORDER = ["ERROR", "CRASH", "OOM", "TIMEOUT", "FAIL", "XPASS", "xfail", "skip", "pass", "n/a", ""];

  function sort(head, direction) {
    var at = heads.indexOf(head), kind = head.dataset.sort, sign = direction === "ascending" ? 1 : -1;
    var keyed = rows.map(function (row, place) { return { row: row, key: key(row, at, kind), place: place }; });
    keyed.sort(function (a, b) {
      var order;
      if (kind === "number") {
        var none = isNaN(a.key) - isNaN(b.key);
        if (none) return none; /* nothing measured is last, either way */
        order = isNaN(a.key) || a.key === b.key ? 0 : a.key < b.key ? -1 : 1;
      } else order = a.key.localeCompare(b.key, "en", { numeric: true });
      return sign * order || a.place - b.place;
    });
    keyed.forEach(function (each) { body.appendChild(each.row); });
    heads.forEach(function (h) { if (h.dataset.sort) h.setAttribute("aria-sort", h === head ? direction : "none"); });
  }

  heads.forEach(function (head) {
    if (!head.dataset.sort) return;
    var button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent.trim();
    head.textContent = "";
    head.appendChild(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", function () {
      sort(head, head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending");
      remember();
    });
  });

  form.addEventListener("input", filter);
  form.addEventListener("change", filter);
  form.addEventListener("submit", function (event) { event.preventDefault(); });
  form.addEventListener("reset", function () { setTimeout(filter, 0); });
  document.getElementById("clear").addEventListener("click", function () { form.reset(); fields.q.focus(); });

  /* Keys: "/" searches, Escape clears it, arrows move between cells. */
  document.addEventListener("keydown", function (event) {
    if (event.key === "/" && !/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName) && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      fields.q.focus();
    } else if (event.key === "Escape" && event.target === fields.q) {
      fields.q.value = "";
      filter();
    }
  });

  function link(row, at) {
    var cell = row && row.cells[at];
    var found = cell && cell.querySelector("a");
    return found && found.offsetParent !== null ? found : null;
  }

  function sibling(row, step) {
    do row = step > 0 ? row.nextElementSibling : row.previousElementSibling; while (row && row.hidden);
    return row;
  }

  body.addEventListener("keydown", function (event) {
    var cell = event.target.closest("td, th");
    if (!cell || event.altKey || event.ctrlKey || event.metaKey) return;
    var row = cell.parentElement, at = cell.cellIndex, next = null, step;
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      step = event.key === "ArrowDown" ? 1 : -1;
      for (row = sibling(row, step); row && !next; row = sibling(row, step)) next = link(row, at);
    } else if (event.key === "ArrowRight" || event.key === "ArrowLeft") {
      step = event.key === "ArrowRight" ? 1 : -1;
      for (at += step; at >= 0 && at < row.cells.length && !next; at += step) next = link(row, at);
    } else if (event.key === "Home") next = link(row, 0);
    else if (event.key === "End") for (at = row.cells.length - 1; at >= 0 && !next; at -= 1) next = link(row, at);
    else return;
    event.preventDefault();
    if (next) next.focus();
  });

  recall();
  filter();
})();
