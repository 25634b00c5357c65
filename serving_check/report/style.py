"""The look of a check's page, after the rules that all pages share."""

from __future__ import annotations

STYLE = """
main { max-width: 70rem; padding-top: 1rem; }
section { scroll-margin-top: 1rem; }

.verdict { display: flex; flex-wrap: wrap; align-items: center; gap: .5rem 2rem; padding: 1.5rem 1.75rem;
  border-radius: 1rem; color: #fff; }
.verdict.passed { background: #166b3a; }
.verdict.failed { background: #a61b1b; }
.verdict h1 { display: flex; align-items: center; gap: .9rem; margin: 0; font-size: 2.5rem; font-weight: 700;
  letter-spacing: -.02em; line-height: 1.1; }
.verdict > div { flex: 1 1 26rem; min-width: 0; }
.verdict p { margin: 0; font-size: .95rem; color: #ffffffd9; }
.verdict .lead { font-size: 1.15rem; font-weight: 550; line-height: 1.4; margin-bottom: .2rem; color: #fff; }
.icon { display: inline-grid; place-items: center; flex: none; width: 1.25rem; height: 1.25rem; border-radius: 50%;
  background: var(--good); }
.icon svg { width: 70%; height: 70%; fill: none; stroke: var(--card); stroke-width: 3; stroke-linecap: round;
  stroke-linejoin: round; }
.verdict .icon { width: 3.25rem; height: 3.25rem; background: #fff; }
.verdict.passed .icon svg { stroke: #166b3a; }
.verdict.failed .icon svg { stroke: #a61b1b; }

nav { display: flex; flex-wrap: wrap; gap: .25rem 1.1rem; margin: .9rem .25rem 0; font-size: .9rem; }
nav a { color: var(--faint); text-decoration: none; padding: .15rem 0; }
nav a:hover { color: var(--ink); text-decoration: underline; }

ul { list-style: none; margin: .5rem 0; padding: 0; }
li > div { min-width: 0; }
h3 code, .name code, td code { color: var(--faint); font-size: .8rem; font-weight: 400; }
.detail { color: var(--faint); font-size: .9rem; }

.misses { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(19rem, 100%), 1fr)); gap: .75rem; }
.misses li { display: flex; gap: .9rem; background: var(--card); border: 1px solid var(--line);
  border-left: 5px solid var(--bad); border-radius: .7rem; padding: 1rem 1.25rem; }
.misses .icon, .gates .icon { margin-top: .15rem; }
.misses .icon { background: var(--bad); }
.misses h3 { margin: 0; }
.misses h3 code { display: block; }
.miss { display: flex; flex-wrap: wrap; align-items: baseline; gap: 0 .75rem; font-variant-numeric: tabular-nums; }
.miss b { font-size: 1.7rem; font-weight: 650; color: var(--bad); line-height: 1.3; }
.miss span { color: var(--faint); }

.gates { background: var(--card); border: 1px solid var(--line); border-radius: .7rem; padding: .25rem 1.1rem; }
.gates li { display: grid; grid-template-columns: 1.25rem minmax(0, 26rem) minmax(0, 1fr); gap: 0 .9rem;
  padding: .4rem 0; }
.gates li + li { border-top: 1px solid var(--line); }
.gates .detail { grid-column: 3; }
.gates .figure { font-variant-numeric: tabular-nums; }
.gates .figure b { font-weight: 600; margin-right: .4rem; }
.gates .figure span { color: var(--faint); font-size: .85rem; }

.cards { grid-template-columns: repeat(auto-fill, minmax(12.5rem, 1fr)); }
.cards dt { color: var(--ink); font-weight: 550; }
.cards dt small { display: block; min-height: 1.2rem; font-weight: 400; white-space: normal; }
.cards .beside { display: flex; justify-content: space-between; gap: .5rem; }
.cards strong { font-weight: inherit; color: var(--bad); }
.beside i { font-style: normal; color: var(--ink); }
.cards dd span { display: block; color: var(--faint); font-size: .85rem; font-variant-numeric: tabular-nums; }
.cards .track { position: relative; height: .4rem; margin: .5rem 0; border-radius: .2rem; background: var(--line); }
.track u, .track i, .track s { position: absolute; top: 0; bottom: 0; }
.track u { left: 0; background: var(--bar); opacity: .45; border-radius: .2rem; }
.track i { background: var(--bar); border-radius: .2rem; min-width: 3px; }
.track s { width: 2px; margin-left: -1px; top: -.2rem; bottom: -.2rem; background: var(--ink); }

.key { display: flex; flex-wrap: wrap; gap: .35rem 1.5rem; color: var(--faint); font-size: .9rem; }

.example { padding: 1rem 1.1rem; }
.query { display: flex; align-items: center; gap: .9rem; }
.query > div { min-width: 0; flex: 1; }
.query .picture { width: 4rem; flex: none; outline: 2px solid var(--good); outline-offset: 2px; }
.query .title { font-size: 1.1rem; font-weight: 600; line-height: 1.35; }
.query .note { white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.query .recall { flex: none; text-align: right; color: var(--faint); font-size: .85rem; line-height: 1.2; }
.recall b { display: block; font-size: 1.3rem; font-weight: 650; font-variant-numeric: tabular-nums; }
.recall.good b { color: var(--good); }
.recall.middle b { color: var(--warn); }
.recall.low b { color: var(--bad); }
h4 { margin: .9rem 0 .35rem; font-size: .8rem; font-weight: 600; letter-spacing: .04em; text-transform: uppercase;
  color: var(--faint); }
ol { list-style: none; margin: 0; padding: 0; }
ol small { display: block; color: var(--faint); font-size: .75rem; font-variant-numeric: tabular-nums; }
ol small b { color: var(--ink); font-weight: 600; }
.example em, .key em { font-style: normal; font-weight: 600; font-size: .68rem; line-height: 1; padding: .2rem .35rem;
  border-radius: .25rem; color: var(--card); white-space: nowrap; }
.pictured ol { display: grid; grid-template-columns: repeat(10, minmax(0, 1fr)); gap: .6rem; }
.pictured li { position: relative; }
.pictured small { margin-top: .3rem; white-space: nowrap; }
.pictured em { position: absolute; top: .25rem; left: .25rem; }
.own em { background: var(--good); }
.extra em { background: var(--warn); }
.missed em { background: var(--bad); }
.pictured .extra .picture { outline: 2px dashed var(--warn); outline-offset: 1px; }
.pictured .missed .picture { outline: 3px solid var(--bad); outline-offset: 1px; }
.pictured .own .picture { outline: 3px solid var(--good); outline-offset: 1px; }
.pictured ol.exact .shared .picture { opacity: .35; }
.listed { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(18rem, 100%), 1fr)); gap: 0 2rem; }
.listed li { display: flex; align-items: center; gap: .6rem; padding: .2rem 0; border-bottom: 1px solid var(--line); }
.listed li > span { flex: 1; min-width: 0; }
.listed .own > span { color: var(--good); font-weight: 600; }
.listed small { order: -1; flex: none; width: 4rem; }

.panel { background: var(--card); border: 1px solid var(--line); border-radius: .7rem; padding: 1rem 1.1rem; }
.panel .charts { grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr)); gap: 1.25rem 2rem; }
.panel figcaption { font-weight: 600; color: var(--ink); font-size: .95rem; margin-bottom: .4rem; }
.front { display: grid; grid-template-columns: minmax(0, 37rem) 1fr; align-items: center; gap: 1rem 2rem; }
.legend { display: flex; flex-direction: column; gap: .45rem; font-size: .9rem; font-variant-numeric: tabular-nums; }
.legend i, .swatch { display: inline-block; width: .8rem; height: .8rem; border-radius: .2rem; margin-right: .5rem;
  vertical-align: -.05rem; }
.legend .ring { border: 2px solid var(--ink); border-radius: 50%; }
.file + .file { margin-top: 1rem; }
.file { margin-bottom: 1.25rem; }
.file > div { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 1rem; margin-bottom: .3rem; }
.file > div span { color: var(--faint); font-variant-numeric: tabular-nums; }
.file svg { width: 100%; height: 1.75rem; border-radius: .35rem; }

.pill { display: inline-block; padding: .05rem .55rem; border-radius: 1rem; border: 1px solid var(--line);
  font-size: .85rem; }
.pill.failed { border-color: var(--bad); background: var(--bad); color: var(--card); font-weight: 600; }
.hostile td > div { display: flex; gap: .6rem; align-items: baseline; }
.hostile .pill { flex: none; }
.hostile small { display: none; }
.hostile td { min-width: 9rem; }
.panel tr:last-child td { border-bottom: 0; }
section > .panel, .panel + .note, .misses, .gates { margin-top: .75rem; }
.compared em { font-style: normal; display: inline-block; min-width: 3rem; }
.better { color: var(--good); font-weight: 600; }
.worse { color: var(--bad); font-weight: 600; }
.same { color: var(--faint); }
section > details { margin-top: .75rem; }
section > details > summary { color: var(--faint); }

.facts { columns: 2 24rem; column-gap: .75rem; margin-top: .75rem; }
.facts article { break-inside: avoid; margin: 0 0 .75rem; }
.facts h3 { margin: 0 0 .35rem; }
.facts dl { margin: 0; }
.facts dl div { display: grid; grid-template-columns: minmax(9.5rem, 2fr) 3fr; gap: .9rem; padding: .2rem 0;
  font-size: .9rem; }
.facts dt { color: var(--faint); }
.facts dd { margin: 0; font-variant-numeric: tabular-nums; }

@media (max-width: 44rem) {
  main { padding: .75rem .75rem 3rem; }
  h2 { margin-top: 2.25rem; }
  .verdict { padding: 1.1rem 1.2rem; }
  .verdict h1 { font-size: 2rem; }
  .verdict .icon { width: 2.5rem; height: 2.5rem; }
  .verdict > div { flex-basis: 100%; }
  .misses li { padding: .9rem 1rem; }
  .gates li { grid-template-columns: 1.25rem minmax(0, 1fr); }
  .gates .figure, .gates .detail { grid-column: 2; }
  .cards { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: .5rem; }
  .cards > div { padding: .65rem .75rem; }
  .cards b { font-size: 1.4rem; }
  .pictured ol { grid-template-columns: repeat(5, minmax(0, 1fr)); gap: .5rem .4rem; }
  .example { padding: .8rem .85rem; }
  .query .picture { width: 3.25rem; }
  .front { grid-template-columns: minmax(0, 1fr); }
  .figures td:first-child { min-width: 6.5rem; }
  .figures th + th, .figures td + td { padding-left: .5rem; }
  .compared tr { display: grid; grid-template-columns: 4.2rem 4.6rem minmax(0, 1fr); padding: .4rem 0;
    border-bottom: 1px solid var(--line); }
  .compared tbody tr:last-child { border-bottom: 0; }
  .compared td, .compared td + td, .compared th + th { border: 0; padding: 0; }
  .compared td:first-child { grid-column: 1 / -1; font-weight: 550; }
  .compared th:first-child, .hostile thead { display: none; }
  .hostile tr { display: block; border-bottom: 1px solid var(--line); padding: .4rem 0; }
  .hostile tr:last-child { border-bottom: 0; }
  .hostile td { display: block; border: 0; padding: .1rem 0; }
  .hostile td:first-child { font-weight: 550; }
  .hostile small { display: block; }
}
"""
