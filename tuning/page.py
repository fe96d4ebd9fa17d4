"""How the page of a search looks."""

STYLE = """
:root { --ink: #1f2933; --soft: #616e7c; --line: #e4e7eb; --blue: #2f6690; --red: #d1495b; }
* { box-sizing: border-box; }
body { margin: 0; background: #f7f8fa; color: var(--ink); line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 70rem; margin: 0 auto; padding: 2rem 1rem 3rem; }
h1 { margin: 0; font-size: 2.1rem; letter-spacing: -.02em; overflow-wrap: anywhere; }
h2 { margin: 0 0 .6rem; font-size: 1.1rem; }
header p { margin: .2rem 0 0; color: var(--soft); }
header .kicker { font-size: .8rem; letter-spacing: .09em; text-transform: uppercase; }
section, figure { background: #fff; border: 1px solid var(--line); border-radius: .7rem;
  padding: 1.2rem; margin: 1.1rem 0 0; min-width: 0; }
.best { display: flex; flex-wrap: wrap; gap: 1rem 2.5rem; align-items: center;
  border-left: .3rem solid var(--red); }
.best > div { flex: 1 1 16rem; }
.best p { margin: 0; }
.big { font-size: 3.2rem; font-weight: 650; line-height: 1.1; letter-spacing: -.03em;
  font-variant-numeric: tabular-nums; }
pre { margin: 0; padding: .8rem 1rem; background: #f1f4f8; border-radius: .5rem; font-size: .84rem;
  flex: 1 1 22rem; min-width: 0; overflow-x: auto; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(7rem, 1fr)); gap: 1rem; }
.tiles b { display: block; font-size: 1.7rem; font-weight: 600; line-height: 1.2;
  font-variant-numeric: tabular-nums; }
.tiles span, .note { color: var(--soft); font-size: .86rem; }
.note { margin: .6rem 0 0; }
.bar { height: .55rem; margin-top: 1rem; border-radius: 1rem; overflow: hidden;
  background: repeating-linear-gradient(135deg, #d3dae2 0 4px, #eef1f5 4px 8px); }
.bar i { display: block; height: 100%; background: var(--blue); }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(27rem, 100%), 1fr));
  gap: 1.1rem; margin-top: 1.1rem; align-items: start; }
.grid figure { margin: 0; }
img { display: block; width: 100%; height: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; }
th { text-align: left; font-weight: 600; color: var(--soft); white-space: nowrap; }
th, td { padding: .45rem .7rem; border-bottom: 1px solid var(--line); vertical-align: baseline; }
tr:last-child td { border-bottom: 0; }
.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.top td { background: #fdf1f3; }
small { color: var(--red); font-weight: 600; margin-right: .4rem; }
.steps { padding-bottom: .15rem;
  background: linear-gradient(var(--blue), var(--blue)) left bottom / var(--share) 2px no-repeat; }
.finished, .pruned, .failed, .stopped, .running { padding: .1rem .55rem; border-radius: 1rem;
  font-size: .8rem; white-space: nowrap; background: #eef1f5; color: #52606d; }
.finished { background: #e3eef6; color: #1f5077; }
.failed { background: #fbe4e7; color: #9b2335; }
.stopped { background: #fdf0dc; color: #8d5b12; }
.running { background: #e4f2e7; color: #2f6b3d; }
.what { min-width: 17rem; }
.why { color: var(--soft); }
@media (max-width: 40rem) { main { padding: 1.2rem .7rem 2rem; } section, figure { padding: .9rem; }
  .big { font-size: 2.6rem; } }
"""
