import json
import math
import re
from html.parser import HTMLParser
from urllib.parse import unquote

import numpy as np
import pytest

from hiermusic.audio import files, pictures
from hiermusic.errors import UserError
from hiermusic.evaluate import plots, report, sections
from hiermusic.evaluate.report import DASH, MINUS, Code, Figure, KeyValues, Page, Player, Section, Table
from hiermusic.evaluate.scores import to_json

NASTY = '<script>alert("x & y")</script>'
VOID = {"meta", "link", "img", "br", "path", "use"}


class Reader(HTMLParser):
    """Collects every tag with its attributes and fails on tags that do not nest."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.open, self.words = [], [], []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def sounds(tmp_path):
    times = np.arange(8000) / 8000
    paths = []
    for name, pitch in (("a song #1.wav", 300), ("b.wav", 900)):
        path = tmp_path / "elsewhere" / name
        path.parent.mkdir(exist_ok=True)
        files.write(path, (0.4 * np.sin(2 * np.pi * pitch * times))[:, None].astype(np.float32), 8000)
        paths.append(path)
    return paths


@pytest.fixture
def metrics(tmp_path):
    rows = [
        {"step": s, "loss": 5 * math.exp(-s / 40) + 1} | ({"valid/loss": 2.0} if s % 50 == 0 else {})
        for s in range(200)
    ]
    path = tmp_path / "run" / "metrics.jsonl"
    path.parent.mkdir()
    path.write_text("\n".join(map(json.dumps, rows)) + '\n{"step": 200, "lo')
    return path


def score_row(value, **facts):
    cell = {"mean": value, "low": value - 1, "high": value + 1, "count": 4}
    return facts | {name: cell for name in ("si_sdr", "sdr", "mel", "stft", "silence")}


def music_row(value):
    cell = {"mean": value, "low": value - 0.1, "high": value + 0.1, "count": int(not math.isnan(value))}
    return dict.fromkeys(("tonality", "chroma_entropy", "onset_regularity"), cell)


@pytest.fixture
def result():
    return {
        "clips": 4,
        "silent_clips": 1,
        "seconds": 40.0,
        "protocol_hash": "0123456789ab",
        "reconstruction": [
            score_row(n, levels=n, bits_per_second=215.0 * n, effective_bits_per_second=200.0 * n, efficiency=200 / 215)
            for n in (1, 2, 4)
        ],
        "anchors": {"random_codes": score_row(-40.0), "shuffled_clips": score_row(math.nan)},
        "music": {name: music_row(value) for name, value in (("the clips themselves", 0.9), ("2 levels", math.nan))},
        "codes": [
            {
                "level": k,
                "usage": 0.9,
                "perplexity": 500.0,
                "entropy_bits": 9.0,
                "bits": 10.0,
                "efficiency": 0.9,
                "tokens": 999,
            }
            for k in range(4)
        ],
    }


def build(tmp_path, items):
    path = report.write(Page("A page", sections=[Section("First", items=items)]), tmp_path / "out" / "page.html")
    return path, Reader(path.read_text())


def test_everything_together_opens_from_disk(tmp_path, sounds, metrics, result):
    baselines = {
        "transform": [score_row(n / 2, limit=215.0 * n, bits_per_second=214.0 * n) for n in (1, 2, 4)],
        "low_pass": [score_row(3.0, cutoff=4000.0)],
        "silence": score_row(0.0),
    }
    less = {"mean": -3.0, "low": -3.5, "high": -2.5, "count": 4}
    losses = [
        {"level": k, "rate": 21.5, "model": 5.0, "unigram": 8.0, "uniform": 10.0, "saved": 0.4, "difference": less}
        for k in (0, 1, "all")
    ]
    losses[0] |= {"model": None, "saved": None}  # a level that is given, as results.json holds it
    page = Page(
        "Demo",
        "One paragraph.\n\nAnother.",
        [
            sections.song(
                "Song", {"tags": "pop", "seconds": 30, "lyrics": "la\nla"}, [Player("Truth", p) for p in sounds]
            ),
            sections.reconstruction(to_json(result), baselines),
            sections.rebuilt_music(to_json(result)),
            sections.code_use(result),
            sections.training({"Codec": metrics, "Backbone": metrics}),
            sections.predictability(losses),
            sections.cost([{"stage": "codec", "seconds": 12.5, "peak_memory_mb": 900}]),
        ],
        "Made in a test.",
    )
    path = report.write(page, tmp_path / "out" / "page.html")
    html = path.read_text()
    reader = Reader(html)
    assert not re.search(r"https?:|@import|url\((?!#)", html)
    for tag, attributes in reader.tags:
        for name in ("src", "href", "xlink:href"):
            link = attributes.get(name, "data:")
            if link.startswith("#"):
                assert any(a.get("id") == link[1:] for _, a in reader.tags), link
            elif not link.startswith("data:"):
                assert (path.parent / unquote(link)).is_file(), (tag, link)
    assert len(reader.all("audio")) == 2 and all(image["alt"] for image in reader.all("img"))
    assert len(reader.all("svg")) == 5 and len(reader.all("section")) == 7
    assert [name for name in path.parent.rglob(".*")] == []


def test_all_text_is_escaped(tmp_path, sounds):
    items = [
        Player(NASTY, sounds[0], NASTY),
        Table([NASTY], [[NASTY]], NASTY),
        KeyValues({NASTY: NASTY}, NASTY),
        Code(NASTY, NASTY),
        Figure(b"png", NASTY, NASTY),
    ]
    page = Page(NASTY, NASTY, [Section(NASTY, NASTY, items)] * 2, NASTY)
    path = report.write(page, tmp_path / "page.html")
    reader = Reader(path.read_text())
    assert len(reader.all("script")) == 1
    assert sum(NASTY in words for words in reader.words) >= 15
    assert NASTY in [image["alt"] for image in reader.all("img")]


def test_sounds_beside_the_page_are_linked_and_others_copied(tmp_path, sounds):
    inside = tmp_path / "out" / "songs" / "x.wav"
    files.write(inside, np.zeros((100, 2), np.float32), 8000)
    path, reader = build(tmp_path, [Player("in", inside), Player("out", sounds[0], spectrogram=False)])
    first, second = (path.parent / unquote(audio["src"]) for audio in reader.all("audio"))
    assert first == inside and second.read_bytes() == sounds[0].read_bytes()
    assert second.parent.name == "page-media" and "#" not in reader.all("audio")[1]["src"]


def test_two_sounds_of_one_name_stay_two(tmp_path):
    paths = [tmp_path / folder / "same" / "x.wav" for folder in "ab"]
    for level, path in enumerate(paths):
        files.write(path, np.full((100, 1), 0.1 * level, np.float32), 8000)
    for _ in range(2):  # writing again adds no copies
        path, reader = build(tmp_path, [Player("p", p) for p in paths])
        copies = [(path.parent / unquote(audio["src"])).read_bytes() for audio in reader.all("audio")]
        assert copies == [p.read_bytes() for p in paths]
        assert len(list((path.parent / "page-media").iterdir())) == 2


def test_a_missing_sound_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no such sound"):
        build(tmp_path, [Player("p", tmp_path / "none.wav")])


def test_tables_align_numbers_and_refuse_ragged_rows(tmp_path):
    rows = [["x", 1.5], ["y", None], ["z", f"{MINUS}3.2 ({MINUS}4 … {MINUS}2)"]]
    _, reader = build(tmp_path, [Table(["name", "score"], rows)])
    assert [cell.get("class") for cell in reader.all("td")] == ["number"] * 3
    assert [cell.get("class") for cell in reader.all("th")] == [None, "number", None, None, None]
    with pytest.raises(UserError, match="2 columns"):
        build(tmp_path, [Table(["a", "b"], [[1]])])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.0, "0"),
        (12345, "12,345"),
        (1234.5, "1,234"),
        (-3.14159, f"{MINUS}3.142"),
        (0.01234, "0.01234"),
        (99.96, "99.96"),
        (3e-7, f"3.00e{MINUS}07"),
        (math.nan, DASH),
        (-math.inf, f"{MINUS}∞"),
        (np.float64(2.5), "2.500"),
    ],
)
def test_numbers(value, text):
    assert report.number(value) == text


def test_plots_follow_the_pages_ink(metrics):
    svg = plots.loss_curves({"one": metrics})
    assert svg.startswith("<svg") and "currentColor" in svg and plots.INK not in svg
    assert plots.loss_curves({"one": metrics}) == svg  # no dates, no random ids
    with pytest.raises(UserError, match="train there first"):
        plots.loss_curves({"one": metrics.parent / "none" / "metrics.jsonl"})


def test_a_plot_of_two_kinds_of_marks_names_both(metrics):
    codes = [{"level": level, "usage": 0.9, "efficiency": 0.8} for level in range(3)]
    for svg, names in (
        (plots.code_usage(codes), ("codes used", "entropy / log2(codes)")),
        (plots.loss_curves({"one": metrics}), ("train", "held out")),
    ):
        assert all(f"<!-- {name} -->" in svg or f">{name}<" in svg for name in names)


def test_between_held_out_losses_lies_a_thinner_line_than_that_of_training(metrics):
    svg = plots.loss_curves({"one": metrics})
    train, valid = (
        float(re.search(rf"stroke: {of}; stroke-width: ([\d.]+)", svg)[1]) for of in (plots.INDIGO, plots.ORANGE)
    )
    assert 0 < valid < train


def test_rates_of_a_thousand_bits_and_more_are_told_in_thousands(result):
    result["reconstruction"][-1]["bits_per_second"] = 1500.0
    svg = plots.reconstruction(result, "mel")
    assert [f"<!-- {rate} -->" in svg or f">{rate}<" in svg for rate in ("215", "430", "1.5k", "0.215k", "1500")] == [
        True, True, True, False, False
    ]  # fmt: skip


def test_a_caption_is_there_where_there_are_words():
    assert report._caption("a < b") == "<figcaption>a &lt; b</figcaption>" and report._caption("") == ""


def test_mel_png_shows_pitch_at_its_height():
    import io

    from PIL import Image

    times = np.arange(16000) / 16000
    rows = []
    for pitch in (300, 3000):
        png = plots.mel_png((0.5 * np.sin(2 * np.pi * pitch * times))[:, None], 16000, width=20)
        image = np.asarray(Image.open(io.BytesIO(png)))
        assert image.shape == (pictures.MEL_BANDS, 20)
        rows.append(image[:, 10].argmax())
    assert rows[0] > rows[1]  # the lower tone lies lower
    silence = np.asarray(Image.open(io.BytesIO(plots.mel_png(np.zeros((4000, 1)), 16000))))
    assert silence.max() == 0


def test_what_is_rebuilt_is_measured_as_music(result):
    (table,) = sections.rebuilt_music(to_json(result)).items
    assert table.columns == ["", "tonality", "chroma entropy, bits", "onset regularity"]
    assert [row[0] for row in table.rows] == ["the clips themselves", "2 levels"]
    assert table.rows[0][1] == "0.90 (0.80 … 1.00)" and table.rows[1][1] == DASH


def test_a_song_is_shown_over_what_its_prompt_says():
    player = Player("a", "a.wav")
    prompt = {"tags": "slow", "seed": 0, "lyrics": "la", "like": None, "name": ""}
    assert sections.song("A", prompt, [player]).items == [
        player,
        KeyValues({"tags": "slow", "seed": 0}),
        Code("la", "Lyrics"),
    ]
    assert sections.song("A", {"lyrics": "", "like": None}, [player]).items == [player]
