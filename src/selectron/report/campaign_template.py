"""The HTML page of a campaign's report; ``campaign_page`` fills in what stands between double braces."""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{{policy}}">
<meta name="generator" content="selectron {{version}}">
<title>{{title}}</title>
<style>
:root { --sans: system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; color-scheme: light dark;
  --paper: #ffffff; --ink: #1d2127; --soft: #5b636e; --rule: #c3c8cf; --wash: #f4f6f8;
  --selected: #0068a8; --random: #b85c00; --accent: #b0103a; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171b; --ink: #e6e8eb; --soft: #a3abb6; --rule: #545c67;
  --wash: #1d2126; --selected: #57b4f2; --random: #f2a44a; --accent: #ff7d99; } }
@media print { :root { --paper: #ffffff; --ink: #000000; --soft: #444444; --rule: #b5b5b5; --wash: #ffffff;
  --selected: #0068a8; --random: #b85c00; --accent: #b0103a; color-scheme: light; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 var(--sans); }
main { max-width: 1060px; margin: 0 auto; padding: 26px 24px 60px; }
h1 { font-size: 25px; line-height: 1.25; margin: 0; }
h2 { font-size: 18px; margin: 40px 0 8px; padding-top: 12px; border-top: 1px solid var(--rule); }
h3 { font-size: 15px; margin: 20px 0 6px; }
p { margin: 6px 0; max-width: 78ch; }
small, figcaption, .facts, .empty { color: var(--soft); font-size: 13px; }
.lead { margin: 18px 0 4px; padding: 0; list-style: none; }
.facts { max-width: 110ch; }
.lead li { max-width: 82ch; margin: 0 0 9px; font-size: 16px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 10px; margin: 20px 0 0; }
.card { background: var(--wash); border: 1px solid var(--rule); border-radius: 7px; padding: 8px 11px; line-height: 1.3; }
.card b { display: block; font-size: 18px; line-height: 1.3; font-weight: 650; white-space: nowrap; }
.card span { color: var(--soft); font-size: 12.5px; }
nav { margin: 14px 0 0; font-size: 13.5px; } nav a { margin-right: 14px; white-space: nowrap; }
a { color: var(--selected); }
figure { margin: 12px 0; } figure svg { display: block; max-width: 100%; height: auto; }
figcaption { max-width: 82ch; margin-top: 4px; }
.wide { overflow-x: auto; margin: 8px 0; }
table { border-collapse: collapse; font-size: 13px; line-height: 1.35; }
th, td { text-align: left; padding: 3px 11px 3px 0; vertical-align: top; border-bottom: 1px solid var(--wash); }
th { border-bottom: 1px solid var(--rule); font-weight: 600; vertical-align: bottom; }
td { overflow-wrap: break-word; } td small { white-space: normal; }
.k, .k small { white-space: nowrap; } td small { font-size: 12px; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
th.n { white-space: normal; }
tbody tr:hover { background: var(--wash); }
th button { font: inherit; color: inherit; background: none; border: 0; padding: 0; cursor: pointer; text-align: inherit; }
th button:hover, th button:focus-visible { text-decoration: underline; }
th[aria-sort=ascending] button::after { content: " ▲"; font-size: 9px; }
th[aria-sort=descending] button::after { content: " ▼"; font-size: 9px; }
details { margin: 5px 0; } summary { cursor: pointer; padding: 2px 0; } summary small { margin-left: 8px; }
pre { background: var(--wash); border: 1px solid var(--rule); border-radius: 6px; padding: 11px 14px; overflow-x: auto;
  font: 12.5px/1.45 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 3px 18px; font-size: 13.5px; } dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
.bad { color: var(--accent); font-weight: 600; }
iframe { width: 100%; height: 640px; border: 1px solid var(--rule); border-radius: 7px; background: #fff; }
.warn { border-left: 3px solid var(--accent); padding: 2px 0 2px 12px; }
@media print {
  body { font-size: 10.5pt; } main { max-width: none; padding: 0; } nav, .screen { display: none; }
  h2, h3, summary { break-after: avoid; } figure, .card, tr, .lead li { break-inside: avoid; }
  .wide, pre { overflow: visible; } pre { white-space: pre-wrap; overflow-wrap: anywhere; } table { font-size: 8.5pt; }
  a { color: inherit; text-decoration: none; }
}
@media (max-width: 640px) { main { padding: 16px 12px 40px; } dl { grid-template-columns: 1fr; } iframe { height: 900px; } }
</style>
</head>
<body>
<main>
<header>
<h1>{{heading}}</h1>
<p class="facts">{{facts}}</p>
<ul class="lead">{{lead}}</ul>
<div class="cards">{{cards}}</div>
<nav aria-label="Sections">{{links}}</nav>
</header>
{{sections}}
</main>
<script>
"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const keyOf = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.key !== undefined ? cell.dataset.key : cell.textContent.trim();
  };
  heads.forEach((head, column) => {
    const numeric = head.classList.contains("n");
    head.querySelector("button").addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const sign = down ? -1 : 1;
      const body = table.tBodies[0];
      const rows = [...body.rows].map((row) => [row, keyOf(row, column)]);
      rows.sort(([, a], [, b]) => {
        if (!numeric) return sign * a.localeCompare(b, undefined, { numeric: true });
        const [x, y] = [parseFloat(a), parseFloat(b)];
        if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
        return sign * (x - y);
      });
      body.append(...rows.map(([row]) => row));
    });
  });
}
</script>
</body>
</html>
"""
