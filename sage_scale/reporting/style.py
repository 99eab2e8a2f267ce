"""The page's style sheet: system fonts, light and dark by the reader's setting, readable on paper and on a phone."""

CSS = """
:root {
  color-scheme: light dark;
  --bg: #f6f5f2; --card: #ffffff; --ink: #1b1f27; --muted: #5a6270; --line: #dedbd4; --faint: #efede8;
  --accent: #2456c8; --accent-ink: #ffffff;
  --lost: #a3241b; --lost-bg: #fbe5e2; --added: #7a5200; --added-bg: #fcefcf;
  --line0: #2456c8; --line1: #c2590c; --line2: #1c7f68; --line3: #8d3aa0;
  --seg0: #2f62cf; --seg1: #b85c12; --seg2: #1f8068; --seg3: #9340a6; --seg4: #b9382f; --seg5: #66761f;
}
@media (prefers-color-scheme: dark) {
  :root {
    --bg: #12151a; --card: #1a1e25; --ink: #e8eaee; --muted: #a2abb9; --line: #323843; --faint: #232831;
    --accent: #86abff; --accent-ink: #10131a;
    --lost: #ff9d92; --lost-bg: #46211f; --added: #f2c46d; --added-bg: #423313;
    --line0: #86abff; --line1: #f5a25d; --line2: #62cfb2; --line3: #d596e6;
    --seg0: #3f70d8; --seg1: #b8641e; --seg2: #2a8a70; --seg3: #9d4fb0; --seg4: #bf463d; --seg5: #707f2b;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--bg); color: var(--ink);
  overflow-wrap: anywhere;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", Arial, sans-serif;
}
main, header.top, footer { max-width: 1120px; margin: 0 auto; padding: 0 20px; }
header.top { padding-top: 40px; }
.kicker { color: var(--muted); font-size: .82rem; letter-spacing: .08em; text-transform: uppercase; margin: 0; }
h1 { font-size: clamp(1.9rem, 5vw, 2.7rem); line-height: 1.15; margin: .1em 0 .2em; letter-spacing: -.02em; }
h2 { font-size: 1.45rem; letter-spacing: -.01em; margin: 0 0 .3em; line-height: 1.25; }
h3 { font-size: 1.05rem; margin: 1.6em 0 .6em; }
p { margin: 0 0 .8em; max-width: 72ch; }
.sub, .note { color: var(--muted); }
.note { font-size: .9rem; }
a { color: var(--accent); }
code { font: .9em ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; border-radius: 4px; }
.skip { position: absolute; left: -999px; }
.skip:focus { left: 12px; top: 12px; background: var(--card); padding: 8px 14px; z-index: 2; }
nav ul { display: flex; flex-wrap: wrap; gap: 4px 18px; list-style: none; padding: 0; margin: 18px 0 0;
  font-size: .93rem; }
nav a { text-decoration: none; }
nav a:hover { text-decoration: underline; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(158px, 1fr)); gap: 12px;
  margin: 26px 0 0; padding: 0; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 14px 16px; margin: 0; }
.tile dt { color: var(--muted); font-size: .84rem; line-height: 1.3; }
.tile dd { margin: 0; }
.tile .value { font-size: 1.85rem; font-weight: 650; letter-spacing: -.02em; line-height: 1.25;
  font-variant-numeric: tabular-nums; }
.tile .small { color: var(--muted); font-size: .8rem; line-height: 1.35; }
.tile.main { background: var(--accent); border-color: var(--accent); color: var(--accent-ink); }
.tile.main dt, .tile.main .small { color: inherit; opacity: .9; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 14px; padding: 24px 26px;
  margin: 22px 0; }
.job { font-size: .9rem; margin-bottom: 1em; }
.job td { text-align: left; white-space: normal; }
.job th { width: 8.5em; vertical-align: top; }
.absent { background: none; border-style: dashed; }
.absent ul { margin: 0; padding-left: 1.2em; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 300px), 1fr)); gap: 18px; }
figure { margin: 0; min-width: 0; }
.chart { border: 1px solid var(--line); border-radius: 10px; padding: 12px 12px 6px; display: flex;
  flex-direction: column; justify-content: space-between; }
.chart figcaption { display: flex; flex-wrap: wrap; gap: 2px 12px; align-items: baseline; font-size: .88rem;
  margin: 0 2px 6px; }
.chart figcaption b { font-weight: 600; }
.key { color: var(--muted); font-size: .8rem; white-space: nowrap; }
.key i { display: inline-block; width: 14px; height: 3px; border-radius: 2px; margin-right: 5px;
  vertical-align: middle; }
svg { display: block; max-width: 100%; height: auto; }
svg text { font: 11px system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", Arial, sans-serif;
  fill: var(--muted);
  font-variant-numeric: tabular-nums; }
svg text.axis { font-size: 10.5px; }
svg text.on { fill: #fff; font-weight: 600; }
svg text.token { fill: var(--ink); font-size: 12px; }
svg .grid { stroke: var(--line); stroke-width: 1; }
svg .rule { stroke: var(--muted); stroke-width: 1; }
svg .ground { fill: var(--card); stroke: var(--line); }
svg .cell { fill: var(--accent); }
svg .cell.missed { fill: var(--lost); }
svg .cell.extra { fill: var(--line1); }
svg text.missed { fill: var(--lost); font-size: 12px; text-decoration: underline dashed; }
svg text.extra { fill: var(--added); font-size: 12px; font-style: italic; }
svg .best { fill: none; stroke: var(--line1); stroke-width: 2; rx: 2px; }
svg .gold { fill: var(--faint); stroke: var(--line); }
.chart svg { width: 100%; }
.scroll { overflow-x: auto; margin: 0 -6px; padding: 2px 6px 8px; }
.scroll svg { max-width: none; }
.scroll .wide { width: 100%; min-width: 760px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .94rem; }
th, td { padding: 8px 10px; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 2px; }
thead th { color: var(--muted); font-weight: 550; font-size: .85rem; border-bottom-width: 2px; white-space: normal;
  min-width: 5em; }
tbody th { font-weight: 500; white-space: normal; min-width: 8.5em; }
tr.strong th, tr.strong td { font-weight: 650; }
tr.group th { color: var(--muted); font-size: .82rem; font-weight: 550; padding-top: 16px; text-align: left; }
th.left { text-align: left; }
td.with-bar { min-width: 190px; text-align: left; }
td.with-bar div { display: grid; grid-template-columns: minmax(3.4em, max-content) 1fr; gap: 10px;
  align-items: center; }
.bar { display: block; height: 10px; border-radius: 5px; background: var(--faint); overflow: hidden; }
.bar i { display: block; height: 100%; border-radius: 5px; background: var(--accent); }
.bar.weak i { background: var(--muted); opacity: .75; }
.examples { list-style: none; padding: 0; margin: 18px 0 0; }
.examples > li { border-top: 1px solid var(--line); padding: 14px 0 12px; display: grid;
  grid-template-columns: 7.2em minmax(0, 1fr);
  gap: 2px 14px; }
.examples .what { color: var(--muted); font-size: .84rem; padding-top: .15em; }
.examples .match { grid-column: 1 / -1; font-size: .8rem; color: var(--muted); }
mark { color: inherit; background: none; border-radius: 3px; padding: 0 3px; margin: 0 -3px; }
mark.lost { color: var(--lost); background: var(--lost-bg); text-decoration: underline; text-decoration-style: dashed;
  text-underline-offset: 3px; }
mark.added { color: var(--added); background: var(--added-bg); text-decoration: underline;
  text-underline-offset: 3px; }
.chip { display: inline-block; border: 1px solid var(--line); background: var(--faint); border-radius: 20px;
  padding: 0 9px; font-size: .82rem; margin: 1px 3px 1px 0; }
.clip { border-top: 1px solid var(--line); padding: 18px 0 10px; }
.clip:first-of-type { border-top: 0; }
.clip .sentence { font-size: 1.08rem; margin: 0 0 2px; }
.strip { position: relative; height: 68px; margin-top: 12px; }
.strip img { position: absolute; height: 64px; object-fit: cover; border-radius: 4px 4px 0 0;
  border-bottom: 4px solid; }
details { border: 1px solid var(--line); border-radius: 10px; padding: 0 14px; margin-top: 18px; }
summary { cursor: pointer; padding: 10px 0; font-weight: 550; }
pre { overflow-x: auto; font: .84rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  margin: 0 0 14px; }
.all td, .all th { white-space: normal; text-align: left; vertical-align: top; }
footer { color: var(--muted); font-size: .85rem; padding-top: 4px; padding-bottom: 40px; }
@media (max-width: 560px) {
  main, header.top, footer { padding-left: 14px; padding-right: 14px; }
  header.top { padding-top: 24px; }
  section { padding: 18px 15px; border-radius: 12px; }
  .tiles { grid-template-columns: repeat(2, 1fr); gap: 9px; }
  .tile { padding: 11px 12px; }
  .tile .value { font-size: 1.5rem; }
  th, td { padding: 7px 7px; }
  td.with-bar { min-width: 150px; }
  .examples > li { grid-template-columns: minmax(0, 1fr); }
  .examples .what { padding-top: .5em; }
}
@media print {
  body { background: #fff; }
  section { break-inside: avoid-page; border: 0; padding: 0; }
  nav, .skip { display: none; }
}
"""
