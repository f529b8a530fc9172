"""The look and the small behaviour of a report page: one style sheet, one script, both set inline."""

CSS = """
:root {
  color-scheme: light dark;
  --paper: #faf9f7; --card: #ffffff; --well: #f3f1ed; --line: #e6e3de;
  --ink: #1c1b1f; --soft: #6b6872; --accent: #b5472f;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #131217; --card: #1c1b21; --well: #17161b; --line: #2e2c35;
    --ink: #eceaf0; --soft: #9d99a6; --accent: #f08a62;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; max-width: 72rem; padding: clamp(1.5rem, 4vw, 4rem) clamp(1rem, 4vw, 3rem) 4rem;
  background: var(--paper); color: var(--ink);
  font: 1rem/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
h1 {
  font-size: clamp(2rem, 5vw, 3.1rem); line-height: 1.08; letter-spacing: -.03em; font-weight: 700;
  margin: 0 0 1rem;
}
h2 { font-size: 1.5rem; letter-spacing: -.018em; line-height: 1.2; margin: 0 0 .6rem; }
p { max-width: 44rem; margin: 0 0 1rem; text-wrap: pretty; }
header p { font-size: 1.125rem; color: var(--soft); }
nav { display: flex; flex-wrap: wrap; gap: .4rem; margin: 1.6rem 0 0; }
nav a {
  padding: .25rem .8rem; border: 1px solid var(--line); border-radius: 99px; background: var(--card);
  color: inherit; text-decoration: none; font-size: .875rem;
}
nav a:hover { border-color: var(--accent); color: var(--accent); }
section { margin-top: 3.2rem; padding-top: 2.2rem; border-top: 1px solid var(--line); }
section > p { color: var(--soft); }
figure, dl { margin: 1.4rem 0; }
figcaption { max-width: 52rem; color: var(--soft); font-size: .875rem; line-height: 1.45; }
a:focus-visible, button:focus-visible, audio:focus-visible, .scroll:focus-visible {
  outline: 2px solid var(--accent); outline-offset: 2px;
}

.players {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr)); gap: 1rem;
  margin: 1.4rem 0;
}
.player {
  margin: 0; display: flex; flex-direction: column; overflow: hidden;
  background: var(--card); border: 1px solid var(--line); border-radius: 14px;
}
.player.sounding { border-color: var(--accent); box-shadow: 0 0 0 1px var(--accent); }
.player figcaption { padding: .8rem 1rem .2rem; flex: 1; }
.player strong { display: block; color: var(--ink); font-size: 1rem; }
.player audio { width: calc(100% - 1.2rem); height: 2.5rem; margin: .5rem .6rem .7rem; }
.spectrum { position: relative; height: 8.5rem; background: #000004; cursor: pointer; }
.spectrum img { display: block; width: 100%; height: 100%; }
.spectrum span {
  position: absolute; padding: 0 .3rem; color: #fff; font: 600 .6875rem/1.5 ui-monospace, Menlo, Consolas, monospace;
  text-shadow: 0 0 3px #000, 0 0 2px #000; opacity: .85; pointer-events: none;
}
.spectrum .top { top: .3rem; left: .3rem; }
.spectrum .foot { bottom: .3rem; left: .3rem; }
.spectrum .end { bottom: .3rem; right: .3rem; }
.spectrum i {
  position: absolute; top: 0; bottom: 0; left: 0; width: 2px; background: #fff; opacity: 0;
  pointer-events: none;
}
.touched .spectrum i { opacity: .9; }

.plots {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem;
  margin: 1.4rem 0;
}
.plot { margin: 0; padding: 1rem; background: var(--card); border: 1px solid var(--line); border-radius: 14px; }
.plots:has(> :only-child) { grid-template-columns: fit-content(100%); }
.plot svg, .plot img { display: block; max-width: 100%; height: auto; margin: auto; }
.plot figcaption { margin-top: .7rem; }

.scroll {
  overflow: auto; width: fit-content; max-width: 100%; max-height: 52rem; padding: 0 1.1rem .5rem;
  background: var(--card); border: 1px solid var(--line); border-radius: 14px;
}
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .875rem; }
th, td { padding: .36rem .9rem .36rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
tbody tr:last-child > * { border-bottom: 0; }
th { font-weight: 600; }
thead th {
  position: sticky; top: 0; background: var(--card); padding-top: .8rem;
  color: var(--soft); font-size: .8125rem; vertical-align: bottom; white-space: nowrap;
}
tbody th { white-space: nowrap; }
thead button { all: unset; cursor: pointer; }
thead button:hover { color: var(--accent); }
.number { text-align: right; white-space: nowrap; padding-right: 0; padding-left: 1.1rem; }
.number:first-child { padding-left: 0; }

dl { display: grid; grid-template-columns: max-content 1fr; gap: .35rem 1.4rem; font-size: .9375rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
dl + figcaption { margin-top: -.8rem; }
pre {
  margin: 0; padding: 1rem 1.1rem; overflow-x: auto; background: var(--well);
  border: 1px solid var(--line); border-radius: 12px;
  font: .875rem/1.55 ui-monospace, "SF Mono", Menlo, Consolas, monospace; tab-size: 2;
}
pre + figcaption, .scroll + figcaption { margin-top: .6rem; }
footer {
  margin-top: 4rem; padding-top: 1.2rem; border-top: 1px solid var(--line); color: var(--soft);
  font-size: .875rem;
}
@media (max-width: 34rem) { dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .6rem; } }
@media print { audio, nav { display: none; } section { break-inside: avoid; } }
"""

JS = """
const players = [...document.querySelectorAll('.player')];
for (const player of players) {
  const audio = player.querySelector('audio'), spectrum = player.querySelector('.spectrum');
  const head = spectrum && spectrum.querySelector('i');
  const draw = () => {
    if (head && audio.duration) head.style.left = 100 * audio.currentTime / audio.duration + '%';
    if (!audio.paused) requestAnimationFrame(draw);
  };
  audio.addEventListener('play', () => {
    for (const other of players) if (other !== player) other.querySelector('audio').pause();
    player.classList.add('sounding', 'touched');
    draw();
  });
  audio.addEventListener('pause', () => player.classList.remove('sounding'));
  audio.addEventListener('seeked', draw);
  if (spectrum) spectrum.addEventListener('click', event => {
    const box = spectrum.getBoundingClientRect();
    const seek = () => { audio.currentTime = audio.duration * (event.clientX - box.left) / box.width; audio.play(); };
    if (audio.readyState) seek(); else { audio.addEventListener('loadedmetadata', seek, {once: true}); audio.load(); }
  });
}
for (const button of document.querySelectorAll('thead button')) button.addEventListener('click', () => {
  const head = button.closest('th'), body = head.closest('table').tBodies[0], column = head.cellIndex;
  const up = head.getAttribute('aria-sort') !== 'ascending';
  const value = row => row.cells[column].textContent.replace('\\u2212', '-').replaceAll(',', '');
  const order = (a, b) => {
    const x = parseFloat(value(a)), y = parseFloat(value(b));
    return isNaN(x) || isNaN(y) ? value(a).localeCompare(value(b)) : x - y;
  };
  for (const other of head.parentNode.cells) other.removeAttribute('aria-sort');
  head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
  body.append(...[...body.rows].sort((a, b) => up ? order(a, b) : order(b, a)));
});
"""
