"""Models of the user: taken in many forms, tried in training on two examples, refused in one line."""

import sys

import jax
import numpy as np
import pytest

from d3mjax.commands.user_model import load_model

X = np.zeros((5, 2), np.float32)
MODELS = """
import sys
import jax, jax.numpy as jnp
from flax import linen, nnx
import d3mjax

def wide(c): return linen.Dense(c + 1)
def one(c): return linen.Dense(1)
def flat(c): return d3mjax.from_functions(lambda key, x: {}, lambda params, x: x.sum())
def numbers(c): return d3mjax.from_functions(lambda key, x: {}, lambda params, x: jnp.zeros((len(x), c), int))
def bare(c): return d3mjax.from_functions(lambda key, x: {}, lambda params, x: jnp.zeros((len(x), c)))
def other(c): return "a model"
def a_class(c): return Squeezed
def broken(c): raise RuntimeError("no GPU")
def leaves(c): sys.exit(3)
def picky(c): return d3mjax.from_functions(lambda key, x: {}, lambda params, x: x.reshape(7, 7))
def softmax(c): return linen.Sequential([linen.Dense(c), linen.softmax])
def endless(c): return d3mjax.from_functions(lambda key, x: jnp.zeros((1, c)), lambda p, x: p + jnp.log(x[:, :1]))

class Squeezed(linen.Module):
    @linen.compact
    def __call__(self, x): return linen.Dense(1)(x)[:, 0]

def squeezed(c): return Squeezed()

class Masked(linen.Module):
    @linen.compact
    def __call__(self, x, mask): return linen.Dense(2)(x)

def masked(c): return Masked()

class Noisy(linen.Module):
    @linen.compact
    def __call__(self, x): return linen.Dropout(0.5, deterministic=False)(linen.Dense(3)(x))

def noisy(c): return Noisy()

class TwoHeads(linen.Module):
    @linen.compact
    def __call__(self, x, train=False):
        logits = linen.Dense(3)(x)
        return (logits, logits) if train else logits

def two_heads(c): return TwoHeads()

class Untried(linen.Module):
    @linen.compact
    def __call__(self, x, training=False):
        x = linen.Dense(3)(x)
        return x @ jnp.ones((4, 3)) if training else x

def untried(c): return Untried()

class Growing(linen.Module):
    @linen.compact
    def __call__(self, x, train=False):
        last = self.variable("cache", "last", lambda: x)
        last.value = x
        return linen.Dense(3)(x)

def growing(c): return Growing()

def refuse(x):
    raise OSError("the file is gone")

class AtWork(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = jax.pure_callback(refuse, jax.ShapeDtypeStruct(x.shape, x.dtype), x, vmap_method="sequential")
        return linen.Dense(3)(jax.lax.stop_gradient(x))

def at_work(c): return AtWork()

class Named(nnx.Module):
    def __init__(self, rngs): self.layer = nnx.Linear(7, 3, rngs=rngs)
    def __call__(self, x): return self.layer(x)

def misfit(c): return lambda rngs: Named(rngs)
"""


@pytest.fixture
def in_models(tmp_path, monkeypatch):
    (tmp_path / "own_models.py").write_text(MODELS)
    (tmp_path / "unfinished.py").write_text("def f(c):\n    return (c\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "own_models", raising=False)


@pytest.mark.filterwarnings("ignore:Using 'Module.sow:DeprecationWarning")
@pytest.mark.parametrize("name", ["A", "C", "sequential", "Deep", "NnxCall", "nnx_class", "nnx_module", "own"])
def test_models_in_every_form(name):
    model = load_model(f"user_models:{name}", 3, X)
    logits, _ = model.apply(model.init(jax.random.key(0), X[:1]), X)
    assert logits.shape == (5, 3)


def test_a_file_is_as_good_as_a_module(in_models, tmp_path):
    (tmp_path / "nets.py").write_text("from flax import linen\ndef net(c):\n    return linen.Dense(c)\n")
    for spec in ("nets:net", "nets.py:net", f"{tmp_path}/nets.py:net", " ./nets.py:net"):
        assert load_model(spec, 3, X).init(jax.random.key(0), X)["params"]["kernel"].shape == (2, 3)


def check_refused(spec, message):
    """In one line, of a length that can be read."""
    with pytest.raises(ValueError, match=f"^--model: '{spec}' {message}") as error:
        load_model(spec, 3, X)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 700


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("wide", r"makes float32\[2, 4\] of features \[2, 2\] in evaluation, expected logits float32\[2, 3\]$"),
        ("one", r"makes float32\[2, 1\] of .*, expected logits float32\[2, 3\]: return \[b, 3\], one number for each"),
        ("squeezed", r"makes float32\[2\] of .*: return \[b, 3\], one number for each class$"),
        ("flat", r"makes float32\[\] of features \[2, 2\]"),
        ("numbers", r"makes int32\[2, 3\] of features"),
        ("bare", "has no parameters, expected some to train"),
        ("other", r"failed for 3 classes \(ValueError: returned str, expected a Flax linen module, an nnx module"),
        ("a_class", r"failed for 3 classes \(ValueError: returned type, expected"),
        ("broken", r"failed for 3 classes \(RuntimeError: no GPU, own_models.py line 14\)"),
        ("leaves", r"failed for 3 classes \(SystemExit: 3, own_models.py line 15\)"),
        ("picky", r"failed on features \[2, 2\] in evaluation \(TypeError: .*, own_models.py line 16\)"),
        ("softmax", "returns probabilities, expected logits: leave out the softmax"),
        ("endless", r"has a loss of .*nan.* on features \[2, 2\], expected finite numbers"),
        ("masked", r"failed for 3 classes \(ValueError: __call__: found the parameter 'mask', expected the features"),
        ("noisy", r"failed on .* in evaluation \(InvalidRngError: .* needs PRNG for \"dropout\""),
        ("two_heads", r"failed on features .* in training \(ValueError: found .*, expected one array of logits"),
        ("untried", r"failed on features .* \(TypeError: .*, own_models.py line \d+\)"),
        ("growing", r"failed on features .* \(ScopeCollectionNotFound: .* \"last\" from collection \"cache\""),
        ("at_work", r"failed in training on features .*the file is gone"),
        ("misfit", r"failed on features \[2, 2\] in evaluation \(TypeError: "),
        ("nothing", r"failed \(AttributeError: .*\), expected module:function"),
    ],
)
def test_models_that_do_not_fit_are_refused_in_one_line(in_models, spec, message):
    check_refused(f"own_models:{spec}", message)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("no_such_module:f", r"failed \(ModuleNotFoundError: .*\), expected module:function of the current directory"),
        ("own_models", r"failed \(ValueError: Empty module name\), expected module:function"),
        ("none.py:f", r"failed \(FileNotFoundError: "),
        ("unfinished:f", r"failed \(SyntaxError: '\(' was never closed \(unfinished.py, line 2\)\)"),
    ],
)
def test_sources_that_do_not_load_are_refused_in_one_line(in_models, spec, message):
    check_refused(spec, message)
