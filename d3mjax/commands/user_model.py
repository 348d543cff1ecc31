"""The model of the user: ``module:function`` or ``file.py:function``, called, and tried on two examples."""

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen, nnx

from d3mjax.networks import adapt
from d3mjax.training import objectives, sampling
from d3mjax.training.trainer import make_trainer
from d3mjax.types import Model, Split

EXPECTED = "expected module:function of the current directory that takes the number of classes"
RETURNED = "expected a Flax linen module, an nnx module or its constructor(rngs), or a d3mjax Model"
_T = TypeVar("_T")


def load_model(spec: str, num_classes: int | None, x: np.ndarray) -> Model:
    """The model that ``spec`` names, in a form that trains: two steps of two models on two rows of ``x`` are taken.

    ``num_classes`` None: a regression; the function is called with 1, and the model has one output.

    Raises:
      ValueError: in one line, whatever the code of the user raises, and a model that does not map ``[b, ...]`` to
        finite logits ``[b, num_classes]`` in training and in evaluation.
    """
    function = _attempt(f"--model: {spec!r} failed", lambda: _function(spec.strip()), after=f", {EXPECTED}")
    called_for = "one output" if num_classes is None else f"{num_classes} classes"
    model = _attempt(f"--model: {spec!r} failed for {called_for}", lambda: model_of(function, num_classes or 1))
    _try(f"--model: {spec!r}", model, np.asarray(x[:2]), num_classes)
    return model


def model_of(function: Callable, num_classes: int) -> Model:
    """The model that ``function(num_classes)`` makes, or ``function(num_classes, rngs=rngs)`` where it takes ``rngs``.

    Raises:
      ValueError: if it is none that can be adapted.
    """
    made = partial(function, num_classes) if _takes_rngs(function) else function(num_classes)
    if isinstance(made, linen.Module):
        return adapt.from_linen(made)
    if isinstance(made, nnx.Module):
        return adapt.from_nnx(made)
    if _takes_rngs(made):
        return adapt.from_nnx(lambda rngs: made(rngs=rngs))
    if not isinstance(made, Model):
        raise ValueError(f"returned {type(made).__name__}, {RETURNED}")
    return made


def _takes_rngs(function: Any) -> bool:
    """Whether it is a function or class with a parameter ``rngs``, as constructors of nnx modules have it."""
    bare = function.func if isinstance(function, partial) else function
    if isinstance(bare, type):
        bare = bare.__init__  # classes of nnx hide their parameters
    return inspect.isroutine(bare) and "rngs" in inspect.signature(bare).parameters


def _function(spec: str) -> Callable:
    """The function of that name."""
    source, _, name = spec.rpartition(":")
    return getattr(_module(source), name)


def _module(source: str) -> ModuleType:
    """The module of that name or file."""
    if not source.endswith(".py"):
        sys.path.append(str(Path.cwd()))  # commands do not look there by themselves
        return importlib.import_module(source)
    spec = importlib.util.spec_from_file_location(f"d3mjax_user_{Path(source).stem}", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their annotations up there
    spec.loader.exec_module(module)
    return module


def _try(name: str, model: Model, x: np.ndarray, num_classes: int | None) -> None:
    """Shapes first, which takes no time, then two steps on ``x [2, ...]``."""
    features, expected = f"features {list(x.shape)}", "predictions" if num_classes is None else "logits"
    shape = (len(x), num_classes or 1)
    variables = _attempt(f"{name} failed on {features}", lambda: jax.eval_shape(model.init, jax.random.key(0), x[:1]))
    for mode in ("evaluation", "training"):
        apply = partial(model.apply, train=mode == "training")
        failed = f"{name} failed on {features} in {mode}"
        logits, _ = _attempt(failed, lambda apply=apply: _applied(apply, variables, x))
        if logits.shape != shape or not jnp.issubdtype(logits.dtype, jnp.floating):
            raise ValueError(
                f"{name} makes {logits.dtype}{list(logits.shape)} of {features} in {mode}, expected "
                f"{expected} float32{list(shape)}{_advice(logits.shape, num_classes or 1)}"
            )
    if not jax.tree.leaves(variables["params"]):
        raise ValueError(f"{name} has no parameters, expected some to train")
    losses, logits = _attempt(f"{name} failed in training on {features}", lambda: _two_steps(model, x, num_classes))
    if not np.isfinite(losses).all() or not np.isfinite(logits).all():
        raise ValueError(f"{name} has a loss of {losses.ravel().tolist()} on {features}, expected finite numbers")
    if num_classes is not None and (logits >= 0).all() and np.allclose(logits.sum(-1), 1, atol=1e-4):
        raise ValueError(f"{name} returns probabilities, expected logits: leave out the softmax at its end")


def _applied(apply: Callable, variables: Any, x: np.ndarray) -> tuple[Any, Any]:
    """Shapes of ``(logits, variables)``. Raises ValueError if ``apply`` returns anything else."""
    result = jax.eval_shape(apply, variables, x)
    if not isinstance(result, tuple) or len(result) != 2 or not hasattr(result[0], "shape"):
        raise ValueError(f"found {jax.tree.structure(result)}, expected one array of logits")
    return result


def _two_steps(model: Model, x: np.ndarray, num_classes: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Losses ``[m s]`` and logits ``[m 2 C]`` after two steps of two models, mapped as the commands map them."""
    y = np.arange(len(x), dtype=np.int32) % (num_classes or len(x))
    numbers = num_classes is None
    y, objective = (y.astype(np.float32), objectives.squared_error()) if numbers else (y, objectives.cross_entropy())
    split = Split(x, y, np.full(len(x), -1, np.int32), np.arange(len(x)))
    tx, sampler = optax.sgd(1e-3), sampling.shuffled()
    trainer = make_trainer(model, objective, tx, sampler, batch_size=len(x))

    @jax.jit
    @jax.vmap
    def fit(key):
        state, info = trainer.run(trainer.init(key, x[:1]), split, jnp.ones(len(x)), 2)
        return info.loss, model.apply(state.variables, x)[0]

    losses, logits = jax.device_get(fit(jax.random.split(jax.random.key(0), 2)))
    return np.asarray(losses, np.float32), np.asarray(logits, np.float32)


def _attempt(failed: str, function: Callable[[], _T], *, after: str = "") -> _T:
    """The result of the user's code, or ValueError with its error in one line."""
    try:
        return function()
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        text = str(error).strip()
        if "Traceback (most recent call last)" in text:  # an error in a callback holds another one, which ends it
            text = text.splitlines()[-1]
        text = " ".join(f"{type(error).__name__}: {text}".split())
        text = text if len(text) <= 400 else f"{text[:400]} ..."
        raise ValueError(f"{failed} ({text}{_line(error)}){after}") from error


def _line(error: BaseException) -> str:
    """The last line of the error outside of installed packages and of d3mjax, if there is one."""
    installed = (str(Path(jax.__file__).parents[1]), str(Path(__file__).parents[1]), "<frozen")
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(installed)]
    own = [f for f in frames if not f.filename.startswith(str(Path(inspect.__file__).parent))]
    return f", {Path(own[-1].filename).name} line {own[-1].lineno}" if own else ""


def _advice(shape: tuple[int, ...], num_classes: int) -> str:
    """What to change, for shapes that are common."""
    if len(shape) == 1 or shape[1:] == (1,):
        for_each = " for each class" if num_classes > 1 else ""
        both = ", and not one for both" if num_classes == 2 else ""
        return f": return [b, {num_classes}], one number{for_each}{both}"
    return ""
