"""What pytest is told of deprecated calls in pyproject.toml."""

import warnings

import pytest


@pytest.mark.parametrize(
    ("module", "words"),
    [("hiermusic.train.lm", "f is old"), ("tests.train.test_lm", "f is old"), ("optax._src.x", "optax.f is old")],
)
def test_a_deprecated_call_of_this_packages_own_fails(module, words):
    with pytest.raises(DeprecationWarning, match="is old"):
        warnings.warn_explicit(words, DeprecationWarning, "file.py", 1, module=module)


def test_a_deprecated_call_within_another_package_does_not():
    warnings.warn_explicit("f is old", DeprecationWarning, "file.py", 1, module="flax.nnx")
