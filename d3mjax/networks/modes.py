"""The switch between training and evaluation: its spellings, as parameters of a call and as attributes of a module."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

_IN_TRAINING = ("train", "training", "is_train", "is_training", "train_mode", "training_mode")
_IN_EVALUATION = (
    *("deterministic", "use_running_average", "inference", "is_inference", "inference_mode"),
    *("eval", "evaluate", "evaluation", "is_eval", "eval_mode", "test", "testing", "is_test", "is_testing"),
)
SPELLINGS = dict.fromkeys(_IN_TRAINING, True) | dict.fromkeys(_IN_EVALUATION, False)
"""The value that each switch has in training; in evaluation it has the other one."""
_NOT_A_SWITCH = ("mode", "phase")  # they switch by text, which differs from module to module


def values(names: Mapping[str, Any] | tuple[str, ...], train: bool) -> dict[str, bool]:
    """The value of each switch among ``names``."""
    return {name: SPELLINGS[name] == train for name in names if name in SPELLINGS}


def of_call(call: Callable) -> tuple[str, ...]:
    """The switches among the parameters of ``call(x, ...)``.

    Raises:
      ValueError: a second parameter without a default, or one that switches by text.
    """
    parameters = list(inspect.signature(call).parameters.values())
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    switches = tuple(p.name for p in named if p.name in SPELLINGS)
    for parameter in named[1:] if named[:1] == parameters[:1] else named:
        if parameter.name in switches:
            continue
        if parameter.default is parameter.empty or parameter.name in _NOT_A_SWITCH:
            raise ValueError(
                f"__call__: found the parameter {parameter.name!r}, expected the features, and a switch such as train "
                "or deterministic that is True or False"
            )
    return switches


def of_attributes(attributes: Mapping[str, Any]) -> tuple[str, ...]:
    """The switches among attributes: None, True or False under one of the names."""
    return tuple(name for name, value in attributes.items() if name in SPELLINGS and value in (None, True, False))


def left_open(call: Callable, module: Any, args: tuple, kwargs: Mapping[str, Any]) -> tuple[str, ...]:
    """The switches of ``call(*args, **kwargs)`` that neither the caller nor an attribute of ``module`` sets."""
    return tuple(
        name
        for i, (name, parameter) in enumerate(inspect.signature(call).parameters.items())
        if name in SPELLINGS and name not in kwargs and i >= len(args) and getattr(module, name, None) is None
        if parameter.default in (None, parameter.empty)
    )
