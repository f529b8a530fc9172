"""One HTML page to read, look at and listen to, opening from disk with no network.

A page is declared as data (`Page` of `Section`s of items) and written by `write`. Style, script and pictures are
inline; sound files lie in a folder beside the page. Every string is escaped; only an SVG figure is taken as it is.
"""

import base64
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import groupby
from pathlib import Path
from urllib.parse import quote

from hiermusic.audio import files
from hiermusic.errors import UserError, replacing
from hiermusic.evaluate import plots
from hiermusic.evaluate.style import CSS, JS

DASH, MINUS = "\u2013", "\u2212"
NUMERIC = re.compile(rf"[{MINUS}+-]?[\d.∞]|{DASH}$")


@dataclass(frozen=True)
class Player:
    """A sound to hear, with its mel spectrogram unless `spectrogram` is False."""

    label: str
    path: str | Path
    caption: str = ""
    spectrogram: bool = True


@dataclass(frozen=True)
class Table:
    """Rows under columns; numbers (and strings that begin with one) are right-aligned, None and NaN show as a dash."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str | int | float | None]]
    caption: str = ""


@dataclass(frozen=True)
class Figure:
    """A picture: an SVG string from `plots` (trusted, set inline) or the bytes of a PNG. `alt` says what it shows."""

    image: str | bytes
    caption: str = ""
    alt: str = ""


@dataclass(frozen=True)
class KeyValues:
    """Named facts: a prompt, settings, hardware."""

    values: Mapping[str, object]
    caption: str = ""


@dataclass(frozen=True)
class Code:
    """Text set as it stands: a command, lyrics, a config."""

    text: str
    caption: str = ""


Item = Player | Table | Figure | KeyValues | Code


@dataclass(frozen=True)
class Section:
    """A chapter: blank lines in `text` part paragraphs; neighbouring players and neighbouring figures share a grid."""

    title: str
    text: str = ""
    items: Sequence[Item] = ()


@dataclass(frozen=True)
class Page:
    """The whole report."""

    title: str
    intro: str = ""
    sections: Sequence[Section] = field(default_factory=tuple)
    footer: str = ""


def write(page: Page, path: str | Path) -> Path:
    """Writes the page and, beside it in `<name>-media/`, the sounds that are not already under its folder.

    Args:
      page: what to show.
      path: of the .html file; folders are made, an older page is replaced in one step.
    Returns:
      the path written.
    Raises:
      UserError: a sound that is missing or unreadable.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    body = "\n".join(_section(section, path, number) for number, section in enumerate(page.sections))
    links = "".join(f'<a href="#s{n}">{escape(s.title)}</a>' for n, s in enumerate(page.sections))
    html = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(page.title)}</title>
<link rel="icon" href="data:,">
<style>{CSS}</style>
</head>
<body>
<header>
<h1>{escape(page.title)}</h1>
{_paragraphs(page.intro)}
{f'<nav aria-label="Sections">{links}</nav>' if len(page.sections) > 1 else ""}
</header>
<main>
{body}
</main>
{f"<footer>{_paragraphs(page.footer)}</footer>" if page.footer else ""}
<script>{JS}</script>
</body>
</html>
"""
    with replacing(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return path


def number(value: float, digits: int = 4) -> str:
    """A number as a table shows it: so many significant digits, thousands grouped, a true minus, a dash for NaN."""
    if isinstance(value, float) and not math.isfinite(value):
        return DASH if math.isnan(value) else ("∞" if value > 0 else MINUS + "∞")
    if isinstance(value, int) or abs(value) >= 1000:
        text = f"{round(value):,}"
    elif value and abs(value) < 1e-3:
        text = f"{value:.2e}"
    else:
        text = f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}" if value else "0"
    return text.replace("-", MINUS)


def _section(section: Section, page: Path, number_: int) -> str:
    parts = [f'<section id="s{number_}">', f"<h2>{escape(section.title)}</h2>", _paragraphs(section.text)]
    for kind, group in groupby(section.items, type):
        if kind is Player:
            parts.append(f'<div class="players">{"".join(_player(item, page) for item in group)}</div>')
        elif kind is Figure:
            parts.append(f'<div class="plots">{"".join(map(_figure, group))}</div>')
        else:
            parts.extend({Table: _table, KeyValues: _key_values, Code: _code}[kind](item) for item in group)
    return "\n".join([*parts, "</section>"])


def _paragraphs(text: str) -> str:
    return "\n".join(f"<p>{escape(p.strip())}</p>" for p in re.split(r"\n\s*\n", text) if p.strip())


def _caption(text: str) -> str:
    return f"<figcaption>{escape(text)}</figcaption>" if text else ""


def _player(player: Player, page: Path) -> str:
    link = quote(_beside(Path(player.path), page))
    label = escape(player.label)
    spectrum = ""
    if player.spectrogram:
        wav_LC, sample_rate = files.read(player.path)
        image = base64.b64encode(plots.mel_png(wav_LC, sample_rate)).decode()
        minutes, seconds = divmod(round(len(wav_LC) / sample_rate), 60)
        spectrum = (
            f'<div class="spectrum"><img alt="Mel spectrogram of {label}" src="data:image/png;base64,{image}">'
            f'<span class="top">{sample_rate / 2000:.4g} kHz</span><span class="foot">0</span>'
            f'<span class="end">{minutes}:{seconds:02d}</span><i></i></div>'
        )
    return (
        f'<figure class="player">{spectrum}<figcaption><strong>{label}</strong>{escape(player.caption)}</figcaption>'
        f'<audio controls preload="metadata" src="{link}" aria-label="{label}"></audio></figure>'
    )


def _beside(sound: Path, page: Path) -> str:
    """The sound's path relative to the page, copied into the page's media folder first if it lies elsewhere."""
    if not sound.is_file():
        raise UserError(f"{sound}: no such sound file; make it before the report that plays it")
    folder = page.parent.resolve()
    if sound.resolve().is_relative_to(folder):
        return sound.resolve().relative_to(folder).as_posix()
    media = folder / f"{page.stem}-media"
    media.mkdir(exist_ok=True)
    target = media / f"{sound.resolve().parent.name}-{sound.name}"
    count = 1
    while target.exists() and target.read_bytes() != sound.read_bytes():
        count += 1
        target = media / f"{sound.resolve().parent.name}-{sound.stem}-{count}{sound.suffix}"
    with replacing(target) as temporary:
        shutil.copyfile(sound, temporary)
    return target.relative_to(folder).as_posix()


def _figure(figure: Figure) -> str:
    alt = escape(figure.alt or figure.caption)
    if isinstance(figure.image, bytes):
        image = f'<img alt="{alt}" src="data:image/png;base64,{base64.b64encode(figure.image).decode()}">'
    else:
        image = f'<div role="img" aria-label="{alt}">{figure.image}</div>'
    return f'<figure class="plot">{image}{_caption(figure.caption)}</figure>'


def _table(table: Table) -> str:
    for row in table.rows:
        if len(row) != len(table.columns):
            raise UserError(f"a row of {len(row)} cells does not fit the table's {len(table.columns)} columns")
    cells = [[DASH if v is None else v if isinstance(v, str) else number(v) for v in row] for row in table.rows]
    numeric = [bool(cells) and all(NUMERIC.match(row[c]) for row in cells) for c in range(len(table.columns))]
    classes = [' class="number"' if n else "" for n in numeric]
    head = "".join(
        f'<th scope="col"{c}><button type="button">{escape(name)}</button></th>'
        for name, c in zip(table.columns, classes, strict=True)
    )
    rows = []
    for row in cells:
        first, *rest = (f"{c}>{escape(cell)}" for cell, c in zip(row, classes, strict=True))
        rows.append(f'<tr><th scope="row"{first}</th>' + "".join(f"<td{cell}</td>" for cell in rest) + "</tr>")
    body = "\n".join(rows)
    return (
        f'<figure><div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>{_caption(table.caption)}</figure>"
    )


def _key_values(facts: KeyValues) -> str:
    rows = "".join(f"<dt>{escape(k)}</dt><dd>{escape(str(v))}</dd>" for k, v in facts.values.items())
    return f"<dl>{rows}</dl>{f'<p>{escape(facts.caption)}</p>' if facts.caption else ''}"


def _code(code: Code) -> str:
    return f"<figure><pre><code>{escape(code.text)}</code></pre>{_caption(code.caption)}</figure>"
