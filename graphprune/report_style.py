"""The style sheet of the report page: colours for light and dark, type, and how rows fold on a narrow screen."""

CSS = """
:root { --bg:#f7f6f2; --card:#fff; --ink:#1c2024; --dim:#646b73; --line:#e3e1da; --soft:#e9e7e0; --before:#a3a9b0;
  --after:#0d7d72; --removed:#e9e4da; --warn-bg:#fdf3da; --warn:#7a4b00; --bad:#b3261e; --good:#0d6b62;
  --c0:#4477aa; --c1:#ee8a3c; --c2:#3f9b5b; --c3:#cc4b5e; --c4:#8d6cb8; --c5:#41a9b5; --c6:#d3b13c; --c7:#96704f;
  --c8:#a3a9b0; }
@media (prefers-color-scheme: dark) { :root { --bg:#121518; --card:#1a1e22; --ink:#e9eaeb; --dim:#9aa3ac;
  --line:#2b3137; --soft:#262b31; --before:#69727b; --after:#35c2b1; --removed:#2c3239; --warn-bg:#33290f;
  --warn:#f2cd78; --bad:#ff8a80; --good:#5ad3c5; --c0:#6699cc; --c3:#e0697b; --c4:#a98bd1; --c8:#69727b; } }
* { box-sizing:border-box; }
body { margin:0; background:var(--bg); color:var(--ink); font:16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto,
  "Noto Sans", "Liberation Sans", sans-serif; font-variant-numeric:tabular-nums; }
main { max-width:62rem; margin:0 auto; padding:2.5rem 1.25rem 4rem; }
h1 { font-size:1.35rem; font-weight:600; margin:0; overflow-wrap:anywhere; }
h2 { font-size:1.05rem; margin:0 0 .75rem; letter-spacing:.01em; }
.eyebrow { margin:0 0 .25rem; color:var(--dim); font-size:.8rem; letter-spacing:.14em; text-transform:uppercase; }
.big { font-size:clamp(4.2rem, 16vw, 8rem); line-height:1; font-weight:750; letter-spacing:-.04em;
  margin:1.2rem 0 .6rem; color:var(--after); }
.big .times { font-weight:400; margin-left:-.03em; }
.big .faster { font-size:.26em; font-weight:500; letter-spacing:0; margin-left:.5em; color:var(--ink); }
.lead { max-width:44rem; margin:0 0 1.8rem; font-size:1.08rem; color:var(--dim); }
.lead strong { color:var(--ink); }
section, .tile, .warn { background:var(--card); border:1px solid var(--line); border-radius:12px; }
section { padding:1.35rem 1.5rem 1.5rem; margin-top:1rem; }
.tiles { display:grid; grid-template-columns:repeat(auto-fit, minmax(11rem, 1fr)); gap:1rem; }
.tile { padding:1rem 1.25rem; display:flex; flex-direction:column; }
.tile .label { color:var(--dim); font-size:.85rem; overflow-wrap:anywhere; }
.tile .value { font-size:1.7rem; font-weight:650; letter-spacing:-.01em; }
.tile .was { color:var(--dim); font-size:.9rem; min-height:1.4em; }
.tile .was b { color:var(--after); font-weight:600; }
.warn { background:var(--warn-bg); color:var(--warn); padding:1rem 1.5rem; margin-bottom:1rem;
  border-color:transparent; }
.warn h2 { margin:0 0 .25rem; } .warn ul { margin:0; padding-left:1.1rem; overflow-wrap:anywhere; }
.note, .dim, small { color:var(--dim); } .note { font-size:.9rem; margin:.4rem 0 .9rem; max-width:46rem; }
small { font-size:.86em; white-space:nowrap; }
.mono, .site .name, .site li { font-family:ui-monospace, "Cascadia Mono", Menlo, Consolas,
  "DejaVu Sans Mono", monospace; font-size:.82rem; }
.num { text-align:right; white-space:nowrap; }
.bar-row { display:grid; grid-template-columns:5rem 1fr 11rem; gap:1rem; align-items:center; margin:.5rem 0; }
.bar-row.check { grid-template-columns:minmax(11rem, 1.1fr) 1.4fr 12rem; margin:.1rem 0; font-size:.92rem; }
.bar-row .name { overflow-wrap:anywhere; }
svg.bar { width:100%; height:.95rem; border-radius:4px; display:block; }
svg.bar.tall { height:2.1rem; } svg.plain { border-radius:0; height:1.8rem; overflow:visible; }
svg.mini { display:block; width:5.5rem; height:.35rem; border-radius:2px; margin:.2rem 0 0 auto; }
.before { fill:var(--before); } .after { fill:var(--after); } .removed { fill:var(--removed); }
.failed { fill:var(--bad); }
.whisker line { stroke:var(--ink); stroke-width:1.5; }
.target { stroke:var(--ink); stroke-width:2; stroke-dasharray:4 3; }
.grid { stroke:var(--line); } .gap { stroke:var(--before); stroke-width:2; stroke-dasharray:1 4; stroke-linecap:round; }
.key, .dot { display:inline-block; width:.75rem; height:.75rem; border-radius:3px; margin:0 .2rem 0 .1rem; }
.dot { border-radius:50%; } .key.after, .dot.after { background:var(--after); }
.dot.before { background:var(--before); }
.key.removed { background:var(--removed); outline:1px solid var(--line); }
.c0 { fill:var(--c0); } .c1 { fill:var(--c1); } .c2 { fill:var(--c2); } .c3 { fill:var(--c3); } .c4 { fill:var(--c4); }
.c5 { fill:var(--c5); } .c6 { fill:var(--c6); } .c7 { fill:var(--c7); } .c8 { fill:var(--c8); }
.key.c0 { background:var(--c0); } .key.c1 { background:var(--c1); } .key.c2 { background:var(--c2); }
.key.c3 { background:var(--c3); } .key.c4 { background:var(--c4); } .key.c5 { background:var(--c5); }
.key.c6 { background:var(--c6); } .key.c7 { background:var(--c7); } .key.c8 { background:var(--c8); }
.site { display:grid; grid-template-columns:minmax(0, 1.5fr) minmax(0, 1.4fr) 7.5rem 9rem; column-gap:1rem;
  align-items:center; padding:.22rem 0; border-top:1px solid var(--line); }
.site .axis { grid-column:1; grid-row:2; font-size:.8rem; } .site .time { font-size:.88rem; }
.site .name summary { overflow:hidden; text-overflow:ellipsis; white-space:nowrap; }
.site .name[open] { grid-column:1 / -1; } .site .name ul { margin:.2rem 0 .5rem; padding-left:1.2rem; }
.site .name p { margin:.3rem 0; font-family:system-ui, sans-serif; } .site li { overflow-wrap:anywhere; }
details > summary { cursor:pointer; } section > details { margin-top:.8rem; }
section > details > summary { color:var(--dim); }
.scroll { overflow-x:auto; } table { border-collapse:collapse; width:100%; font-size:.95rem; margin-top:.5rem; }
th { text-align:left; font-weight:500; color:var(--dim); font-size:.85rem; } th.num { text-align:right; }
th, td { padding:.4rem .6rem .4rem 0; border-bottom:1px solid var(--line); vertical-align:top; }
th.num, td.num { padding-left:.8rem; padding-right:0; }
tr:last-child td { border-bottom:0; } td:first-child { min-width:9rem; overflow-wrap:anywhere; }
td small { white-space:normal; }
.verdict { margin:.2rem 0 .3rem; font-weight:600; } .verdict.good { color:var(--good); }
.verdict.bad { color:var(--bad); }
dl { display:grid; grid-template-columns:max-content 1fr; gap:.3rem 1.5rem; margin:0; font-size:.95rem; }
dt { color:var(--dim); } dd { margin:0; overflow-wrap:anywhere; }
@media (max-width:44rem) { main { padding:1.5rem .9rem 3rem; } section { padding:1.1rem 1rem; }
  .bar-row, .bar-row.check { grid-template-columns:minmax(0, 1fr) auto; gap:.2rem 1rem; }
  .bar-row svg { grid-column:1 / -1; grid-row:2; }
  .site { grid-template-columns:minmax(0, 1fr) auto; row-gap:.15rem; } .site svg { grid-column:1 / -1; grid-row:2; }
  .site .axis { grid-row:3; } .site .time { grid-column:2; grid-row:3; }
  .tiles { grid-template-columns:1fr 1fr; gap:.6rem; } .tile { padding:.8rem .9rem; }
  .tile .value { font-size:1.35rem; }
  dl { grid-template-columns:1fr; gap:0; } dd { margin-bottom:.5rem; } }
"""
