"""Style and script of the page. ``FIRST`` in the script stands for the rows that are open at first."""

STYLE = """
:root { color-scheme: light dark; --ink: #1d2327; --soft: #68737d; --line: #dfe3e6; --back: #fff; --panel: #f6f8f9;
  --bar: #9fd0ea; --pale: #d9e2e8; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7ea; --soft: #9aa4ad; --line: #363d43; --back: #15191c;
  --panel: #1d2226; --bar: #1f6a94; --pale: #37424a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 1.2rem 1rem 3rem; }
h1 { font-size: 1.55rem; line-height: 1.25; margin: .4rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
.facts, .hint, footer { color: var(--soft); }
.hint { font-size: .9rem; margin: .2rem 0 .8rem; }
small { display: block; color: var(--soft); font-size: .78rem; line-height: 1.3; }
.picture { text-align: center; margin: 0; }
.picture img { max-width: 100%; max-height: 92vh; height: auto; background: #fff; border-radius: 8px; padding: 8px;
  border: 1px solid var(--line); }
.top { padding: 0; list-style: none; }
.top li { display: flex; gap: .8rem; align-items: center; margin: .35rem 0; }
.pair { overflow-wrap: anywhere; }
.pair i { color: var(--soft); }
.bar { flex: none; display: inline-block; width: 6.2rem; height: 1.45em; border-radius: 4px; text-align: right;
  background: linear-gradient(90deg, var(--bar) calc(100% * var(--v)), var(--panel) 0); padding: 0 .35em;
  line-height: 1.45; }
.bar.pale { background: linear-gradient(90deg, var(--pale) calc(100% * var(--v)), var(--panel) 0); }
.bar b { font-weight: 600; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { text-align: left; vertical-align: top; padding: .38rem .55rem; border-bottom: 1px solid var(--line); }
td { overflow-wrap: anywhere; min-width: 2.2rem; }
th { background: var(--panel); white-space: nowrap; font-weight: 600; }
th button { all: unset; cursor: pointer; white-space: normal; }
th button:focus-visible { outline: 2px solid var(--bar); }
th[aria-sort=ascending] button::after { content: " ▲"; font-size: .7em; }
th[aria-sort=descending] button::after { content: " ▼"; font-size: .7em; }
.num { font-variant-numeric: tabular-nums; white-space: nowrap; }
tr.pale td { color: var(--soft); }
input, #more { font: inherit; color: inherit; background: var(--panel); border: 1px solid var(--line);
  border-radius: 6px; padding: .4rem .7rem; }
input { width: 100%; max-width: 20rem; }
#more { cursor: pointer; }
dt { font-weight: 600; margin-top: .8rem; }
dd { margin: .1rem 0 0; max-width: 46rem; }
footer { margin-top: 2.5rem; font-size: .85rem; }
td.name { min-width: 8.5rem; }
.notes { min-width: 12rem; }
@media (max-width: 46rem) {
  .wide, #pairs .rank { display: none; }
  .picture.large { overflow-x: auto; text-align: left; }
  .picture.large img { max-width: none; max-height: none; width: 54rem; }
  table, tbody, thead { display: block; }
  thead tr { display: flex; flex-wrap: wrap; gap: .2rem .9rem; padding: .3rem .4rem; background: var(--panel); }
  th { padding: 0; border: 0; background: none; }
  th small { display: none; }
  td { padding: 0; border: 0; min-width: 0; }
  td.name { min-width: 0; }
  tbody tr { display: grid; column-gap: .7rem; padding: .5rem .2rem; border-bottom: 1px solid var(--line); }
  tbody tr[hidden] { display: none; }
  #pairs tbody tr { grid-template-columns: 6.4rem 1fr auto; grid-auto-flow: dense; }
  #pairs .strength { grid-column: 1; grid-row: 1 / span 3; }
  #pairs .name { grid-column: 2; }
  #pairs .nats { grid-column: 3; grid-row: 1; text-align: right; }
  #pairs td.nats:not(:empty)::after { content: " nats"; color: var(--soft); font-size: .78rem; }
  #pairs .nats small { display: none; }
  #pairs .p { grid-column: 3; grid-row: 2; text-align: right; font-size: .78rem; color: var(--soft); }
  #pairs td.p:not(:empty)::before { content: "p "; }
  #columns tbody tr { grid-template-columns: 1fr auto; }
  #columns .kind { text-align: right; }
  #columns .missing { font-size: .78rem; }
  #columns td.missing:not(:empty)::after { content: " missing"; }
  #columns td.missing:empty { display: none; }
  #columns .notes { grid-column: 1 / span 2; min-width: 0; font-size: .8rem; color: var(--soft); }
}
@media print { #find, #more, .hint { display: none; } }
"""

SCRIPT = """
"use strict";
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  table.querySelectorAll("th").forEach((head, at) => head.querySelector("button").addEventListener("click", () => {
    const number = head.dataset.kind === "n";
    const up = head.hasAttribute("aria-sort") ? head.getAttribute("aria-sort") !== "ascending" : !number || at === 0;
    table.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = row => number ? parseFloat(row.cells[at].dataset.v ?? "NaN")
      : row.cells[at].textContent;
    const compare = number ? (a, b) => (isNaN(a) - isNaN(b)) || (up ? a - b : b - a)
      : (a, b) => (up ? 1 : -1) * a.localeCompare(b, undefined, { numeric: true });
    body.append(...[...body.rows].map(row => [key(row), row]).sort((a, b) => compare(a[0], b[0])).map(pair => pair[1]));
    if (table.id === "pairs") show();
  }));
}
const pairs = document.getElementById("pairs"), find = document.getElementById("find");
const more = document.getElementById("more");
let all = !more;
function show() {
  const wanted = find.value.trim().toLowerCase();
  let seen = 0;
  for (const row of pairs.tBodies[0].rows) {
    const fits = !wanted || row.textContent.toLowerCase().includes(wanted);
    row.hidden = !fits || (!all && !wanted && ++seen > FIRST);
  }
}
find.addEventListener("input", show);
if (more) more.addEventListener("click", () => { all = true; more.parentElement.hidden = true; show(); });
show();
"""
