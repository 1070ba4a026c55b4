"""The style sheet of rgfl/page.py: light and dark as the reader's system is, one column on a phone."""

STYLE = """
:root { --ink: #1b1f24; --soft: #5d6673; --back: #f4f5f7; --card: #fff; --rule: #e2e5ea; --accent: #2563eb;
  --c0: #2563eb; --c1: #d97706; --c2: #059669; --c3: #9333ea; --c4: #db2777; --c5: #52606f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --soft: #9aa4b0; --back: #111316;
  --card: #1a1d22; --rule: #2b3038; --accent: #6ea8fe;
  --c0: #6ea8fe; --c1: #f5a742; --c2: #34d399; --c3: #c084fc; --c4: #f472b6; --c5: #a8b3c2; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1240px; padding: 12px; background: var(--back); color: var(--ink);
  font: 15px/1.45 system-ui, sans-serif; -webkit-text-size-adjust: 100%; }
header, section { background: var(--card); border: 1px solid var(--rule); border-radius: 10px;
  padding: 16px; margin-bottom: 12px; }
h1 { margin: 0 0 10px; font-size: 24px; overflow-wrap: anywhere; }
h2 { margin: 0 0 6px; font-size: 18px; }
h3 { margin: 20px 0 8px; font-size: 15px; }
p { margin: 6px 0 10px; color: var(--soft); }
small { color: var(--soft); font-size: 12.5px; }
code { font-size: 13px; overflow-wrap: anywhere; }
.progress { height: 6px; border-radius: 3px; background: var(--rule); overflow: hidden; }
.progress div { height: 100%; background: var(--accent); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(128px, 1fr)); gap: 14px;
  margin: 14px 0; }
.tiles > div { display: flex; flex-direction: column; }
.tiles strong { font-size: 26px; line-height: 1.2; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 14px; margin: 0; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
.chips { display: flex; flex-wrap: wrap; gap: 6px; list-style: none; margin: 0; padding: 0; }
.chips li { border: 1px solid var(--rule); border-radius: 6px; padding: 0 7px; }
.chips s { color: var(--soft); }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(290px, 1fr)); gap: 14px; }
.beside { display: flex; flex-wrap: wrap; gap: 16px 32px; align-items: flex-start; }
.beside .chart { flex: 1 1 300px; max-width: 480px; }
.beside .scroll { flex: 1 1 420px; }
figure { margin: 0; min-width: 0; }
figcaption { font-size: 13px; overflow-wrap: anywhere; }
.chart svg { display: block; width: 100%; height: auto; }
.chart text { font-size: 11px; fill: var(--soft); }
.chart polyline { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.chart .raw { opacity: .28; stroke-width: 1; }
.grid { stroke: var(--rule); }
.limit { stroke: var(--soft); stroke-dasharray: 4 4; }
.key { white-space: nowrap; margin-left: 8px; }
.key b { font-weight: 600; }
.c0 { stroke: var(--c0); }
.c1 { stroke: var(--c1); }
.c2 { stroke: var(--c2); }
.c3 { stroke: var(--c3); }
.c4 { stroke: var(--c4); }
.c5 { stroke: var(--c5); }
.key.c0 { color: var(--c0); }
.key.c1 { color: var(--c1); }
.key.c2 { color: var(--c2); }
.key.c3 { color: var(--c3); }
.key.c4 { color: var(--c4); }
.key.c5 { color: var(--c5); }
circle.c0 { fill: var(--c0); }
circle.c1 { fill: var(--c1); }
circle.c2 { fill: var(--c2); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px; }
th, td { padding: 3px 10px; border-bottom: 1px solid var(--rule); text-align: left; white-space: nowrap; }
th { font-weight: 600; color: var(--soft); }
.n { text-align: right; }
tfoot td { font-weight: 600; border: 0; }
.bar { position: relative; min-width: 110px; }
.bar span { position: relative; }
.bar div { position: absolute; inset: 3px auto 3px 2px; max-width: calc(100% - 4px); border-radius: 3px;
  background: color-mix(in srgb, var(--accent) 28%, transparent); }
.hot { background: color-mix(in srgb, var(--c1) calc(.6 * var(--heat)), transparent); }
.dim { color: var(--soft); }
summary { cursor: pointer; }
.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(340px, 100%), 1fr));
  gap: 12px; }
.crops { display: grid; grid-template-columns: repeat(4, 1fr); gap: 12px; }
@media (max-width: 700px) { .crops { grid-template-columns: repeat(2, 1fr); } }
.crops > p { grid-column: 1 / -1; margin: 0; }
.seen figure svg { display: block; width: 100%; border-radius: 6px; background: #000; }
.seen figcaption { margin-top: 4px; }
.crops figcaption { display: flex; flex-direction: column; line-height: 1.35; }
.kind { color: var(--soft); }
.want::before { content: "expected "; color: var(--soft); }
.got::before { content: "came "; color: var(--soft); }
.seen path { fill: transparent; stroke-width: 2; vector-effect: non-scaling-stroke;
  stroke-linejoin: round; }
.seen path.under { stroke: #000; stroke-opacity: .6; stroke-width: 4; }
path.faint { opacity: .5; stroke-width: 1; }
.seen path:hover { fill: rgb(255 255 255 / .25); }
.t, .x { stroke-dasharray: 5 4; }
.t { stroke: #4cc3ff; }
.m { stroke: #ffd60a; }
.x { stroke: #b8b8b8; }
.r { stroke: #2ee67a; }
.w { stroke: #ff4d3d; }
.i { stroke: #b8b8b8; }
.crops path:is(.m, .w):not(.faint) { stroke-width: 2.5; }
.samples path { stroke-width: 1.6; }
.samples path.under { stroke-width: 3; }
.seen figure text { stroke: #000; stroke-width: 3; stroke-dasharray: none; paint-order: stroke;
  text-anchor: middle; vector-effect: non-scaling-stroke; font-weight: 600; }
text.m { fill: #ffd60a; }
text.w { fill: #ff7a6d; }
.legend { display: flex; flex-wrap: wrap; gap: 6px 16px; margin-bottom: 10px; font-size: 13.5px; }
.legend label { display: flex; align-items: center; gap: 5px; cursor: pointer; }
.legend label::after { content: ""; width: 26px; border-top: 3px solid; order: -1; }
.legend .t::after { border-top: 3px dashed #2aa9e8; }
.legend .m::after { border-color: #e6bd00; }
.legend .x::after { border-top: 3px dashed #999; }
.legend .r::after { border-color: #16c060; }
.legend .w::after { border-color: #ff4d3d; }
.legend input { margin: 0; }
body:has(.show-t:not(:checked)) .samples .t, body:has(.show-m:not(:checked)) .samples .m,
  body:has(.show-x:not(:checked)) .samples :is(.x, .i), body:has(.show-r:not(:checked)) .samples .r,
  body:has(.show-w:not(:checked)) .samples .w { display: none; }
"""
