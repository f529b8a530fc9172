"""What a verb asks of the rooms below it, recorded; nothing below it runs."""

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

import jax
import pytest
from ml_collections import ConfigDict

from hiermusic import cli


def record(monkeypatch: pytest.MonkeyPatch, below: Mapping[str, Any]) -> dict[str, Any]:
    """Replaces functions, named by their dotted paths, by ones that return what stands beside them.

    Returns:
      The arguments of the last call of each, by "module.function.argument", and the settings of JAX.
    """
    calls: dict[str, Any] = {}
    for path, result in below.items():
        module, _, name = path.rpartition(".")
        module = importlib.import_module(module)
        monkeypatch.setattr(module, name, _recorder(path, getattr(module, name), result, calls))
    monkeypatch.setattr("jax.config.update", lambda name, value: calls.update({f"jax.config.{name}": value}))
    return calls


def called(capsys: pytest.CaptureFixture, calls: dict[str, Any], verb: str, *words: str) -> dict[str, Any]:
    """The calls that a verb makes with these words, and what it prints and its exit status where it is not 0."""
    calls.clear()
    capsys.readouterr()
    try:
        cli.main([verb, *words])
        status = {}
    except SystemExit as ending:
        status = {"exit": ending.code}
    out, err = capsys.readouterr()
    assert "hiermusic" not in err, err
    return dict(calls) | {"out": out.strip()} | status


def _recorder(path: str, real: Callable, result: Any, calls: dict[str, Any]) -> Callable:
    signature, place = inspect.signature(real), ".".join(path.split(".")[-2:])
    rest = [name for name, one in signature.parameters.items() if one.kind is one.VAR_KEYWORD]

    @functools.wraps(real)
    def recorded(*arguments, **named):
        bound = dict(signature.bind(*arguments, **named).arguments)
        for name in rest:
            bound |= bound.pop(name, {})
        calls.update({f"{place}.{name}": _told(value) for name, value in bound.items()} or {f"{place}.": None})
        return result() if isinstance(result, FunctionType) else result

    return recorded


def _told(value: Any) -> Any:
    """What can be compared of an argument."""
    if isinstance(value, ConfigDict):
        return told(value)
    if isinstance(value, list) and value and isinstance(value[0], jax.Device):
        return f"{len(value)} devices"
    return "a function" if isinstance(value, FunctionType | functools.partial) else value


def told(config: ConfigDict) -> tuple:
    return config.stage, config.preset, config.train.steps, dict(config.mesh)
