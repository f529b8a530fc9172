"""The verb that compiles for a slice of TPUs before it is paid for."""

import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

from hiermusic.console import say
from hiermusic.verbs.flags import Values, Verb, answer, boolean, choice, config, integer, need, positional, string

_DOES_NOT_FIT = 3  # exit status
_GIB = 2**30
_EFFORTS = ("O0", "O1", "O2", "O3")


def _define_compile(values: Values) -> None:
    config(values)
    string(values, "topology", "slice of TPUs to compile for: v5e:4x4, v5p:4x4x8, v6e:16x16; or a Cloud name: v6e-256")
    integer(values, "slices", "how many such slices, joined by the data-centre network", 1)
    boolean(values, "fit", "find the largest batch that fits under each remat policy")
    boolean(values, "generate", "compile what generation runs instead of the training step")
    choice(values, "effort", "of the compiler for the program's speed, if not its own: O0 compiles fastest", _EFFORTS)
    string(values, "out", "file that gets the JSON object too")
    boolean(values, "json", "print one JSON object")


def _compile(values: Values, given: list[str]) -> None:
    positional(given)
    need(values, "config", "topology")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing runs: an accelerator of this machine is left alone
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # programs for absent devices are written there but not read
    import jax

    jax.config.update("jax_optimization_level", values.effort or "UNKNOWN")
    from hiermusic.errors import UserError, replacing
    from hiermusic.parallel.aot import examine
    from hiermusic.parallel.chips import chip_of
    from hiermusic.parallel.topology import topology
    from hiermusic.systems import programs, workdir
    from hiermusic.train import compile, loop

    if values.fit and values.generate:
        raise UserError("--fit looks at training: leave --generate out")
    settings = workdir.resolved(values.config)
    build = partial(workdir.stage, settings)
    devices = topology(values.topology, values.slices)
    stage = build()
    chip = chip_of(devices[0])
    mesh = loop.check(stage, devices)
    facts: dict[str, Any] = {
        "system": settings.system,
        "stage": settings.stage,
        "preset": settings.preset,
        "topology": values.topology,
        "slices": values.slices,
        "chips": len(devices) // chip.devices_per_chip,
        "chip": chip.name,
        "memory_per_chip": chip.memory,
        "mesh": dict(mesh.shape),
        "parameters": compile.parameters(stage),
        "batch_size": stage.config.loop.batch_size,
        "remat": stage.config.remat or "none",
    }
    if values.fit:
        facts["fit"] = compile.fit(build, devices, chip, lambda text: say(f"hiermusic compile: {text}"))
        fits = any(facts["fit"]["largest"].values())
    else:
        jobs = programs.generation(settings, mesh) if values.generate else compile.jobs(build, mesh)
        facts["programs"] = [examine(job, mesh, chip) for job in jobs]
        fits = facts["fits"] = all(program["fits"] for program in facts["programs"])
    if values.out:
        Path(values.out).parent.mkdir(parents=True, exist_ok=True)
        with replacing(values.out) as temporary:
            temporary.write_text(json.dumps(facts, indent=1) + "\n")
    answer(values, facts, _lines(facts))
    if not fits:
        sys.exit(_DOES_NOT_FIT)


def _lines(facts: dict[str, Any]) -> list[str]:
    slices = f" x {facts['slices']} slices" if facts["slices"] > 1 else ""
    mesh = ", ".join(f"{axis}={size}" for axis, size in facts["mesh"].items())
    lines = [
        f"{facts['system']} {facts['stage']} {facts['preset']} on {facts['topology']}{slices}: {facts['chips']} "
        f"{facts['chip']} chips of {facts['memory_per_chip'] / _GIB:.0f} GiB, mesh {mesh}",
        f"{facts['parameters']:,} parameters, batch {facts['batch_size']}, remat {facts['remat']}",
    ]
    for program in facts.get("programs", ()):
        lines += ["", *_program(program, facts["memory_per_chip"])]
    return lines + (_fit(facts["fit"], facts["batch_size"]) if "fit" in facts else [])


def _program(program: dict[str, Any], memory: float) -> list[str]:
    took = f"compiled in {program['compile_seconds']:.1f} s, traced in {program['lower_seconds']:.1f} s"
    sizes = program["bytes_per_chip"]
    if not program["fits"]:
        return [f"{program['name']}: DOES NOT FIT; {took}", f"  {program['error'].splitlines()[0]}"]
    most = f"{sizes['peak'] / _GIB:.2f} GiB a chip at most ({sizes['peak'] / memory:.0%})"
    lines = [
        f"{program['name']}: fits, {most}; {took}",
        "  " + ", ".join(f"{name} {size / _GIB:.2f} GiB" for name, size in sizes.items() if name != "peak"),
    ]
    if program["collectives"] is None:
        lines.append("  collectives: not readable by this jaxlib; pip install 'jax[tpu]' brings its own libtpu")
    elif program["collectives"]:
        lines.append(f"  {'collectives a step':<20} {'group':>7} {'count':>8} {'GiB a chip':>11}")
    for row in program["collectives"] or ():
        group = row["devices"] or "-"
        note = "" if row["loops_known"] else "  (some in loops of unknown length, counted once)"
        lines.append(f"  {row['kind']:<20} {group:>7} {row['count']:>8,} {row['bytes'] / _GIB:>11.3f}{note}")
    told = program["prediction"]
    parts = ("compute", "memory", "ici", "dcn", "blocking")
    lines += [
        f"  prediction, best case: {told['step_seconds']:.4g} s a step, bound by {told['bound_by']}; "
        f"MFU {told['mfu']:.0%}, {told['tokens_per_second']:,.0f} tokens/s, "
        f"{told['audio_seconds_per_second']:,.0f} s of audio a second",
        "  of it: " + ", ".join(f"{part} {told[f'{part}_seconds']:.4g} s" for part in parts),
    ]
    return lines


def _fit(fit: dict[str, Any], batch: int) -> list[str]:
    lines = ["", f"{'remat':<6} {'largest batch':>14} {'GiB a chip':>11} {'tokens/s predicted':>19}   tried"]
    for policy, largest in fit["largest"].items():
        rows = sorted((row for row in fit["tried"] if row["remat"] == policy), key=lambda row: row["batch_size"])
        tried = ", ".join(f"{row['batch_size']} {'fits' if row['fits'] else 'does not'}" for row in rows)
        best = next((row for row in rows if row["batch_size"] == largest), None)
        size, rate = (f"{best['wanted'] / _GIB:.2f}", f"{best['tokens_per_second']:,.0f}") if best else ("-", "-")
        lines.append(f"{policy:<6} {largest or 'none':>14} {size:>11} {rate:>19}   {tried}")
    cheapest = fit["cheapest"]
    how = f"fits from remat {cheapest} on" if cheapest else "fits under no remat policy"
    return [*lines, f"batches are multiples of {fit['unit']}; batch {batch} {how}"]


VERBS = {
    "compile": Verb(
        "compile for a slice of TPUs on this machine: what fits, what it sends, how long a step should take",
        "",
        _define_compile,
        _compile,
    ),
}
