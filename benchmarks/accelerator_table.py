"""What `accelerator.py` wrote, as Markdown."""

from typing import Any

Record = dict[str, Any]


def show(records: list[Record]) -> None:
    """Prints what a run wrote, the newest record where there are several."""
    last = {(r["section"], *(r.get(k) for k in ("what", "model", "dtype", "batch", "n", "remat"))): r for r in records}
    kinds = {"card": card_rows, "parity": parity_rows, "backbone": training_rows, "superres": training_rows}
    kinds |= {"tokens": token_rows, "song": song_rows, "scales": scale_rows, "codec": training_rows}
    for name, rows_of in kinds.items():
        found = [r for r in last.values() if r["section"] == name and r.get("what") not in ("done", "best")]
        rows = rows_of([r for r in found if "error" not in r and "skipped" not in r])
        if len(rows) > 1:
            heading, *cells = rows
            print("\n".join(f"| {' | '.join(row)} |" for row in (heading, ["---"] * len(heading), *cells)) + "\n")
        for record in found:
            if why := record.get("error") or record.get("skipped"):
                words = (record.get(key) for key in ("program", "model", "dtype", "remat"))
                print(f"* {' '.join([name, *filter(None, words)])}: {why}\n")
            elif record.get("what") == "attention":
                calls = f"{record['forward']} calls forward, {record['backward']} backward"
                print(f"* {name}, {record['program']}: cuDNN's attention, {calls} ({record['where']})\n")
            elif record.get("what") == "convention":
                print(f"Operations: {record['words']}.\n")


Rows = list[list[str]]


def card_rows(records: list[Record]) -> Rows:
    rows = [["card", "measured", "data sheet"]]
    sheet = next((r for r in records if r["what"] == "device"), {})
    for r in records:
        if r["what"] == "device":
            rows.append([f"{r['device']}, jax {r['jax']}", "", ""])
        elif r["what"] == "matrix":
            rows.append([f"bfloat16 product, n = {r['n']:,}", tera(r["flops"]), tera(sheet.get("sheet_flops"))])
        elif "bytes_per_second" in r:
            of = f"{sheet['sheet_bandwidth'] / 1e9:,.0f} GB/s" if "sheet_bandwidth" in sheet else ""
            rows.append([f"memory, {r['what']}", f"{r['bytes_per_second'] / 1e9:,.0f} GB/s", of])
    return rows


def parity_rows(records: list[Record]) -> Rows:
    rows = [["tiny model", "logits", "loss", "gradient norm", "CPU's own distance from float32: logits"]]
    for r in records:
        parts = [f"{r['from_cpu'][name]:.1e}" for name in ("logits", "loss", "grad_norm")]
        rows.append([f"{r['model']}, {r['dtype']}", *parts, f"{r['cpu_from_float32']['logits']:.1e}"])
    return rows


def training_rows(records: list[Record]) -> Rows:
    heading = "training step, rows x length, recomputed, s, TFLOP/s, MFU, of the measured peak, GiB, compile s"
    rows = [heading.split(", ")]
    for r in records:
        if r["what"] != "step":
            continue
        name = f"{r['model']}, {r['layers']} of {r['of']} layers" if "layers" in r else f"codec, {r['dtype']}"
        length = r.get("positions") or r.get("samples")
        gib = (r.get("peak") or r["needs"]) / 2**30
        figures = [f"{r['seconds']:.3f}", f"{r['tflops']:.4g}", share(r["mfu"]), share(r["mfu_of_measured"])]
        rows.append([name, f"{r['rows']} x {length:,}", r.get("remat", "none"), *figures, f"{gib:.1f}",
                     f"{r['compile']:.0f}"])  # fmt: skip
    return rows


def token_rows(records: list[Record]) -> Rows:
    rows = [["backbone, batch", "ms a step", "tokens/s", "floor, ms", "times its floor", "four minutes, s"]]
    for r in records:
        if r["what"] == "step":
            rows.append([str(r["batch"]), f"{1e3 * r['seconds']:.2f}", f"{r['tokens_per_second']:,.0f}", *floor(r, 1e3),
                         f"{r['songs_seconds']:.1f}"])  # fmt: skip
    return rows


def song_rows(records: list[Record]) -> Rows:
    rows = [["four-minute song", "s", "floor, s", "times its floor"]]
    for r in records:
        match r["what"]:
            case "passes":
                rows.append([f"{r['count']} layer-wise passes", f"{r['song']:.2f}", *floor(r, r["count"])])
            case "decoding":
                rows.append(["decoding", f"{r['song']:.2f}", *floor(r, 1)])
            case "whole":
                rows.append(["with the backbone", f"{r['seconds']:.1f}", f"{r['floor']:.1f}", f"{r['times']:.2f}"])
    return rows


def scale_rows(records: list[Record]) -> Rows:
    heading = "passes, s, floor of the passes in ms, times its floor, real-time factor, times next-scale, compile in s"
    rows = [[f"a second of music, d{records[0]['depth']}", *heading.split(", ")]] if records else []
    for r in records:
        rows.append([r["model"], str(r["passes"]), f"{r['seconds']:.3f}", *floor(r, 1e3), f"{r['real_time']:.3g}",
                     f"{r['times']:.1f}", f"{r['compile']:.0f}"])  # fmt: skip
    return rows


def tera(value: float | None) -> str:
    return f"{value / 1e12:,.3g} TFLOP/s" if value else ""


def share(value: float | None) -> str:
    return f"{100 * value:.0f} %" if value else ""


def floor(record: Record, unit: float) -> list[str]:
    """A floor in some unit, and how many times it was taken."""
    if "floor" not in record:
        return ["", ""]
    return [f"{unit * record['floor']:.3g} ({record['bound']})", f"{record['seconds'] / record['floor']:.2f}"]
