//! Colours and layout.

/// The page's style sheet.
pub const CSS: &str = "
:root {
  --ground: #faf9f7; --card: #ffffff; --ink: #1d2126; --muted: #626a73; --line: #dfe1e4; --grid: #eceef0;
  --blue: #2767b1; --green: #2b7d4f; --red: #c0362c; --amber: #a86a00; --violet: #7a4bb0; --grey: #8a929b;
  --good-ground: #e4f3ea; --bad-ground: #fbe6e4; --warn-ground: #fbf0da; --run-ground: #e3edf9;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #14171a; --card: #1c2024; --ink: #e6e8ea; --muted: #9aa3ad; --line: #343a41; --grid: #282d33;
    --blue: #6ba6ea; --green: #5fc18a; --red: #f0776c; --amber: #e2a83e; --violet: #b48ae6; --grey: #7d8690;
    --good-ground: #1b3325; --bad-ground: #43211f; --warn-ground: #3c2f14; --run-ground: #1d3048;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 24px 20px 40px; }
h1 { font-size: 24px; margin: 0 0 2px; overflow-wrap: anywhere; line-height: 1.3; }
h2 { font-size: 16px; margin: 0 0 12px; }
p { margin: 0 0 10px; overflow-wrap: anywhere; }
.muted, footer { color: var(--muted); }
footer { font-size: 13px; margin-top: 20px; }
code { font-family: ui-monospace, monospace; font-size: 0.92em; }
.badge { font-size: 13px; font-weight: 600; padding: 3px 10px; border-radius: 99px; vertical-align: 3px; }
.badge.good { background: var(--good-ground); color: var(--green); }
.badge.bad { background: var(--bad-ground); color: var(--red); }
.badge.warn { background: var(--warn-ground); color: var(--amber); }
.badge.running { background: var(--run-ground); color: var(--blue); }
section, .tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
section { padding: 18px 20px; margin-top: 16px; min-width: 0; }
.tiles { display: grid; grid-template-columns: repeat(6, 1fr); gap: 12px; margin-top: 16px; }
.tile { padding: 12px 14px; min-width: 0; }
.tile b { display: block; font-size: 21px; line-height: 1.3; font-variant-numeric: tabular-nums; }
.tile span { color: var(--muted); font-size: 13px; }
.tile.good b { color: var(--green); } .tile.bad b { color: var(--red); }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 16px; }
.plot { display: grid; grid-template-columns: auto 1fr; grid-template-rows: auto auto; column-gap: 8px; }
.area { position: relative; height: 260px; border-left: 1px solid var(--line); border-bottom: 1px solid var(--line); }
.area.low { height: 220px; }
.area svg { position: absolute; inset: 0; width: 100%; height: 100%; overflow: visible; }
.axis-y { position: relative; min-width: 44px; }
.axis-y span { position: absolute; right: 0; transform: translateY(50%); }
.axis-x { grid-column: 2; position: relative; height: 22px; }
.axis-x span { position: absolute; transform: translateX(-50%); top: 3px; }
.axis-x span.first { transform: none; } .axis-x span.last { transform: translateX(-100%); }
.axis-x span, .axis-y span { font-size: 12px; color: var(--muted); white-space: nowrap; line-height: 1; font-variant-numeric: tabular-nums; }
.grid { stroke: var(--grid); stroke-width: 1; vector-effect: non-scaling-stroke; }
.curve { fill: none; stroke: var(--blue); stroke-width: 2; vector-effect: non-scaling-stroke; stroke-linejoin: round; }
.bar { fill: var(--blue); }
.median { stroke: var(--ink); stroke-width: 1; stroke-dasharray: 4 3; vector-effect: non-scaling-stroke; }
.gone { --mark: var(--red); } .memory { --mark: var(--violet); } .wrong { --mark: var(--amber); } .odd { --mark: var(--grey); }
.mark { position: absolute; top: 0; bottom: 0; width: 0; border-left: 1px solid var(--mark); opacity: 0.75; }
.mark i { position: absolute; width: 9px; height: 9px; left: -5px; border-radius: 50%; background: var(--mark);
  border: 1px solid var(--card); transform: translateY(50%); }
.key { display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 13px; color: var(--muted); margin: 12px 0 0; padding: 0; list-style: none; }
.key i { display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin-right: 6px; background: var(--mark); }
.key i.quarantined { background: repeating-linear-gradient(135deg, var(--amber) 0 2px, transparent 2px 4px); }
.lanes { display: grid; grid-template-columns: minmax(70px, auto) 1fr; gap: 8px 12px; align-items: center; }
.lanes .name { font-size: 13px; overflow-wrap: anywhere; max-width: 180px; }
.lane { position: relative; height: 24px; background: var(--grid); border-radius: 4px; overflow: hidden; }
.lane div { position: absolute; top: 0; bottom: 0; min-width: 1px; }
.serving { background: var(--blue); } .quarantined { background: repeating-linear-gradient(135deg, var(--amber) 0 4px, transparent 4px 8px); }
.lane .mark { border-left-width: 2px; opacity: 1; min-width: 0; box-shadow: 1px 0 0 var(--card), -1px 0 0 var(--card); }
.lanes .axis-x { margin-top: -4px; }
.stack { display: flex; height: 26px; border-radius: 5px; overflow: hidden; background: var(--grid); }
.stack div { min-width: 1px; }
.part-0 { --mark: var(--green); } .part-1 { --mark: var(--blue); } .part-2 { --mark: var(--red); }
.part-3 { --mark: var(--violet); } .part-4 { --mark: var(--grey); } .part-5 { --mark: var(--amber); }
.stack div, .swatch { background: var(--mark); }
.swatch { display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin-right: 8px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
table + table { margin-top: 16px; }
th { text-align: left; font-weight: 600; color: var(--muted); font-size: 12.5px; }
th, td { padding: 6px 10px 6px 0; border-bottom: 1px solid var(--grid); vertical-align: top; overflow-wrap: anywhere; }
tr:last-child td { border-bottom: 0; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.whole { white-space: nowrap; } td.device { min-width: 92px; } th { white-space: nowrap; }
td.when { white-space: nowrap; font-variant-numeric: tabular-nums; }
.scroll { max-height: 640px; overflow-y: auto; }
.class { font-size: 12.5px; font-weight: 600; color: var(--mark); white-space: nowrap; }
.tag { font-size: 11.5px; border: 1px solid var(--line); border-radius: 4px; padding: 0 5px; color: var(--muted); white-space: nowrap; }
.verdict { font-weight: 600; } .verdict.good { color: var(--green); } .verdict.bad { color: var(--red); }
dl { display: grid; grid-template-columns: auto 1fr; gap: 5px 14px; margin: 0 0 10px; font-size: 14px; }
dt { color: var(--muted); } dd { margin: 0; text-align: right; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
@media (max-width: 900px) { .tiles { grid-template-columns: repeat(3, 1fr); } .pair { grid-template-columns: 1fr; gap: 0; } }
@media (max-width: 640px) {
  main { padding: 16px 12px 32px; }
  h1 { font-size: 20px; }
  section { padding: 14px; }
  .tiles { grid-template-columns: repeat(2, 1fr); gap: 8px; }
  .area { height: 200px; }
  .lanes { grid-template-columns: 1fr; gap: 2px; } .lanes .name { margin-top: 6px; max-width: none; }
  .lanes .axis-x { grid-column: 1; margin-top: 2px; } .lanes .corner { display: none; }
  .scroll { max-height: none; }
  .cards thead { display: none; }
  .cards tr { display: block; border-bottom: 1px solid var(--line); padding: 8px 0; }
  .cards tr:last-child { border-bottom: 0; }
  .cards td { display: grid; grid-template-columns: 84px 1fr; gap: 8px; border: 0; padding: 2px 0; text-align: left; white-space: normal; }
  .cards td::before { content: attr(data-label); color: var(--muted); font-size: 12.5px; }
  .cards td.empty { display: none; }
}
@media print { body { background: #fff; } .scroll { max-height: none; } section { break-inside: avoid; } }
";
