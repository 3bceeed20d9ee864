/* Looks at a sample of both sides' activations. Plain script: it must run from a disk. */
"use strict";
(function () {
  /* float16, little-endian, in base 64 */
  function unpack(packed) {
    var bytes = atob(packed.data), out = [];
    for (var i = 0; i < bytes.length; i += 2) {
      var bits = bytes.charCodeAt(i) | (bytes.charCodeAt(i + 1) << 8);
      var exponent = (bits >> 10) & 31, fraction = bits & 1023, size;
      if (exponent === 31) size = fraction ? NaN : Infinity;
      else if (exponent) size = Math.pow(2, exponent - 15) * (1 + fraction / 1024);
      else size = Math.pow(2, -14) * (fraction / 1024);
      out.push((bits & 32768 ? -1 : 1) * size * (packed.scale || 1));
    }
    return out;
  }

  function make(tag, text, attributes) {
    var element = document.createElement(tag);
    if (text !== undefined && text !== null) element.textContent = text;
    Object.keys(attributes || {}).forEach(function (name) { element.setAttribute(name, attributes[name]); });
    return element;
  }

  function shown(x) {
    if (x === 0) return "0";
    if (!isFinite(x)) return isNaN(x) ? "NaN" : x > 0 ? "∞" : "-∞";
    var size = Math.abs(x);
    return size >= 0.001 && size < 10000 ? String(Number(x.toPrecision(4))) : x.toExponential(1);
  }

  function visible(word) {
    return word.replace(/\n/g, "↵").replace(/\t/g, "→").replace(/ /g, "␣") || "∅";
  }

  function select(label, options, id) {
    var field = make("div", null, { "class": "field" });
    field.appendChild(make("label", label, { "for": id }));
    var box = make("select", null, { id: id });
    options.forEach(function (o) { box.appendChild(make("option", o[1], { value: o[0] })); });
    field.appendChild(box);
    return { field: field, box: box };
  }

  function Look(place, sample, name) {
    var port = name.replace(/--sample$/, "");
    var word = function (id) { return visible(sample.words[id] !== undefined ? sample.words[id] : String(id)); };
    var tokens = sample.ids.map(word);
    var controls = make("div", null, { "class": "controls" });
    var out = make("div");
    var site = select("Site", sample.sites.map(function (s, i) { return [i, s.site]; }), name + "--site");
    var which = select("Neuron", [], name + "--which");
    var query = select("Seen from token", tokens.map(function (t, i) { return [i, i + " " + t]; }), name + "--query");
    query.box.value = String(tokens.length - 1);
    [site, which, query].forEach(function (each) { controls.appendChild(each.field); });
    place.appendChild(make("p", "Prompt “" + sample.prompt + "”, the first " + tokens.length + " of " +
      sample.length + " tokens, in promoted float64. Values are kept to three digits; the difference by itself, so that it keeps its own.",
      { "class": "muted" }));
    place.appendChild(controls);
    place.appendChild(out);

    function chosen() { return sample.sites[Number(site.box.value)]; }

    function offer() {
      var s = chosen(), heads = s.axes[0] === "head";
      which.field.querySelector("label").textContent = heads ? "Head" : "Neuron";
      which.box.textContent = "";
      if (!heads) which.box.appendChild(make("option", "all " + s.index.length + " of the " + s.of, { value: "all" }));
      s.index.forEach(function (n, i) { which.box.appendChild(make("option", String(n), { value: i })); });
      if (!heads) which.box.value = "0";
      query.field.hidden = !heads;
      query.field.style.display = heads ? "" : "none";
    }

    /* reference, subject and difference of what is chosen, by token */
    function values() {
      var s = chosen(), width = s.index.length, n = tokens.length;
      var r = unpack(s.reference), d = unpack(s.difference);
      var at = s.axes[0] === "head"
        ? function (i) { return (Number(which.box.value) * n + Number(query.box.value)) * n + i; }
        : function (i) { return i * width + Number(which.box.value); };
      return tokens.map(function (_, i) {
        return { reference: r[at(i)], difference: d[at(i)], subject: r[at(i)] + d[at(i)] };
      });
    }

    function strip(title, list) {
      var most = Math.max.apply(null, list.map(function (x) { return isFinite(x) ? Math.abs(x) : 0; }));
      out.appendChild(make("h4", title));
      var strip = make("ol", null, { "class": "strip", "aria-label": title });
      list.forEach(function (x, i) {
        var level = !isFinite(x) ? "s5" : most > 0 && x !== 0 ? "t" + Math.min(4, 1 + Math.floor(4 * Math.abs(x) / most)) : "";
        var item = make("li", null, level ? { "class": level } : {});
        item.appendChild(make("b", tokens[i]));
        item.appendChild(make("span", shown(x)));
        strip.appendChild(item);
      });
      out.appendChild(strip);
    }

    function table(caption, header, rows) {
      var scroll = make("div", null, { "class": "scroll", role: "region", tabindex: "0", "aria-label": port + ": " + caption });
      var t = make("table", null, { "class": "figures" });
      t.appendChild(make("caption", caption));
      var head = t.createTHead().insertRow();
      header.forEach(function (h) { head.appendChild(make("th", h, { scope: "col" })); });
      var body = t.createTBody();
      rows.forEach(function (row) {
        var line = body.insertRow();
        row.forEach(function (c, i) { line.appendChild(i ? make("td", c) : make("th", c, { scope: "row" })); });
      });
      scroll.appendChild(t);
      return scroll;
    }

    function guesses() {
      var g = sample.guesses;
      if (!g.reference) return null;
      var said = function (side, i) {
        return g[side].ids[i].map(function (id, k) { return word(id) + " " + shown(g[side].logits[i][k]); }).join("  ·  ");
      };
      return table("Likeliest next tokens after each token, with their logits", ["after", "reference", "port"],
        tokens.map(function (t, i) { return [i + " " + t, said("reference", i), said("subject", i)]; }));
    }

    function draw() {
      out.textContent = "";
      var s = chosen();
      if (which.box.value === "all") {
        var width = s.index.length, r = unpack(s.reference), d = unpack(s.difference);
        [["Reference", function (k) { return r[k]; }], ["Port", function (k) { return r[k] + d[k]; }],
         ["Difference", function (k) { return d[k]; }]].forEach(function (side) {
          out.appendChild(table(side[0] + " at " + s.site, ["token"].concat(s.index.map(function (n) { return "neuron " + n; })),
            tokens.map(function (t, i) {
              return [i + " " + t].concat(s.index.map(function (_, k) { return shown(side[1](i * width + k)); }));
            })));
        });
        return;
      }
      var found = values();
      strip("Reference", found.map(function (v) { return v.reference; }));
      strip("Port", found.map(function (v) { return v.subject; }));
      strip("Difference", found.map(function (v) { return v.difference; }));
      var details = make("details");
      details.appendChild(make("summary", "The same as a table"));
      details.appendChild(table(s.site, ["token", "reference", "port", "difference"], found.map(function (v, i) {
        return [i + " " + tokens[i], shown(v.reference), shown(v.subject), shown(v.difference)];
      })));
      out.appendChild(details);
    }

    site.box.addEventListener("change", function () { offer(); draw(); });
    which.box.addEventListener("change", draw);
    query.box.addEventListener("change", draw);
    offer();
    draw();
    var likely = guesses();
    if (likely) place.appendChild(likely);
  }

  Array.prototype.forEach.call(document.querySelectorAll(".look"), function (place) {
    var name = place.dataset.from;
    var sample = JSON.parse(document.getElementById(name).textContent);
    if (sample.sites.length) Look(place, sample, name);
    else place.appendChild(make("p", "The sample holds no site.", { "class": "muted" }));
  });
})();
