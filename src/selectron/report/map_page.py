"""The HTML page around the interactive map; ``map_html`` fills in what stands between double braces."""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{{policy}}">
<meta name="generator" content="selectron {{version}}, chemiscope {{chemiscope}}">
<title>{{title}}</title>
<!-- The viewer below is chemiscope (BSD-3-Clause), which carries plotly.js (MIT) and 3Dmol.js (BSD-3-Clause). -->
<style>
* { box-sizing: border-box; }
html, body { margin: 0; height: 100%; color: #222; }
body { font: 14px/1.4 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
body { display: flex; flex-direction: column; min-height: 560px; background: #fff; }
header { display: flex; flex-wrap: wrap; gap: 2px 28px; align-items: baseline; }
header { padding: 10px 18px 8px; border-bottom: 1px solid #ddd; }
h1 { font-size: 17px; margin: 0; }
header p { margin: 0; color: #555; }
header .note { flex-basis: 100%; color: #777; font-size: 12.5px; }
.legend { margin-left: auto; display: flex; gap: 18px; }
.legend svg { width: 13px; height: 13px; vertical-align: -2px; margin-right: 5px; }
main { flex: 1; min-height: 0; display: flex; gap: 10px; padding: 6px 12px 10px; }
.left, .right { display: flex; flex-direction: column; min-width: 0; min-height: 0; position: relative; }
.left { flex: 3; } .right { flex: 2; }
#map, #structure { flex: 1; min-height: 0; position: relative; }
#map > div:first-child, #structure > div:first-child { height: 100%; }
#meta { display: none; }
#shown { padding: 4px 6px; min-height: 30px; }
#shown b { font-weight: 600; }
#message { display: none; margin: 8px 18px; padding: 8px 12px; }
#message { border: 1px solid #f0ad4e; background: #fcf8e3; color: #7a5c1e; }
@media (max-width: 800px) { main { flex-direction: column; } .left, .right { flex: none; height: 480px; } }
</style>
</head>
<body>
<header>
<h1>{{title}}</h1>
<p>{{subtitle}}</p>
<div class="legend">{{legend}}</div>
<p class="note">{{note}}</p>
</header>
<div id="message" role="alert"></div>
<noscript><p>This page needs JavaScript to draw the map; it loads nothing from the network.</p></noscript>
<main>
<div class="left"><div id="meta"></div><div id="map"></div></div>
<div class="right"><div id="shown"></div><div id="structure"></div><div id="info"></div></div>
</main>
<script type="application/octet-stream" id="viewer">{{viewer}}</script>
<script type="application/octet-stream" id="dataset">{{dataset}}</script>
<script>
"use strict";
(async () => {
  const say = (text) => {
    const box = document.getElementById("message");
    box.textContent = text;
    box.style.display = "block";
  };
  const unpack = async (id) => {
    const packed = Uint8Array.from(atob(document.getElementById(id).textContent.trim()), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    return await new Response(stream).text();
  };
  try {
    if (typeof DecompressionStream === "undefined") {
      throw new Error("this browser cannot unpack the page; any browser of 2023 or later can");
    }
    const viewer = document.createElement("script");
    viewer.textContent = await unpack("viewer");
    document.head.appendChild(viewer);
    const dataset = JSON.parse(await unpack("dataset"));
    for (const property of Object.values(dataset.properties)) {
      property.values = property.values.map((value) => (value === null ? NaN : value));
    }
    const warnings = new Chemiscope.Warnings();
    warnings.addHandler((text) => {
      if (!text.includes("can not be interpreted as categories")) say(text);
    });
    const places = { map: "map", info: "info", meta: "meta", structure: "structure" };
    const map = await Chemiscope.DefaultVisualizer.load(places, dataset, warnings);
    const caption = (i) => {
      const value = (name) => dataset.properties[name].values[i];
      const kind = value("kind") + (Number.isNaN(value("rank")) ? "" : " " + value("rank"));
      const facts = [value("source"), value("formula")];
      if (!Number.isNaN(value("variance"))) facts.push("variance " + value("variance").toPrecision(4));
      const name = document.createElement("b");
      name.textContent = kind;
      document.getElementById("shown").replaceChildren(name, " · " + facts.join(" · "));
    };
    const show = map.info.show.bind(map.info);
    map.info.show = (indexes) => {
      show(indexes);
      caption(indexes.structure);
    };
    caption(dataset.settings.pinned[0]);
    document.body.dataset.ready = "true";
  } catch (error) {
    say("The map could not be drawn: " + error.message);
    throw error;
  }
})();
</script>
</body>
</html>
"""
