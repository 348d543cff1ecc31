"""The laws that a machine can check, read off the syntax of every module; the checkers are tested, too."""

import ast
import inspect
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

import d3mjax

ROOT = Path(__file__).parent.parent
MAX_LINES, MAX_PARAMETERS = 400, 10
# Rooms and their floors; a room imports itself and lower floors. `types` is the ground.
FLOORS = {
    "d3mjax.types": 0,
    **dict.fromkeys(("d3mjax.keys", "d3mjax.linalg"), 1),
    **dict.fromkeys(("d3mjax.data", "d3mjax.networks", "d3mjax.training", "d3mjax.metrics"), 2),
    "d3mjax.attribution": 3,
    "d3mjax.runtime": 4,  # above attribution, which it spreads over devices
    **dict.fromkeys(("d3mjax.debiasing", "d3mjax.diagnosis", "d3mjax.valuation"), 5),
    **dict.fromkeys(("d3mjax.unlearning", "d3mjax.reports"), 6),  # unlearning edits the last layer of debiasing
    "d3mjax.commands": 7,
    "experiments.local_data": 7,
    **dict.fromkeys(("experiments.study", "experiments.tasks"), 8),
    **dict.fromkeys(("experiments.cifar_tasks", "experiments.text_tasks", "experiments.photograph_tasks"), 9),
    **dict.fromkeys(("experiments.bias_tasks", "experiments.examples", "experiments.language_models"), 9),
    "experiments.number_tables": 9,
    "experiments.number_tasks": 10,
    **dict.fromkeys(("experiments.preference_tasks", "experiments.rating_tasks", "experiments.diagnoses"), 10),
    # Wings: each imports study, tasks and itself, no other wing.
    **{
        f"experiments.{wing}": 11
        for wing in ("d3m", "datamodels", "bias", "diagnosis", "language", "recommendation", "bench")
    },
    "experiments.__main__": 13,
    "experiments.demix_tasks": 11,
    "experiments.published": 12,
    "experiments.overview": 14,
}
IMPURE_ROOMS = {
    "d3mjax.runtime",
    "d3mjax.data",
    "d3mjax.reports",
    "d3mjax.commands",
    *(name for name in FLOORS if "experiments" in name),
}
IMPURE_MODULES = {"os", "pathlib", "shutil", "subprocess", "tempfile", "time", "datetime", "argparse", "logging"}
IMPURE_NAMES = {"open", "print", "input"}
IMPURE_ATTRIBUTES = {
    *("jax.config", "jax.devices", "jax.local_devices", "jax.device_count", "jax.process_index", "jax.default_backend"),
    *("jax.device_put", "jax.distributed", "np.load", "np.save", "np.savez", "jnp.load", "jnp.save"),
}
RETIRED = {"pmap", "tree_map", "tree_multimap", "PRNGKey", "xmap", "host_callback"}
# Data that may be absent, rather than options.
POSITIONAL_DEFAULTS = {
    ("cues", "group_shares", "class_shares"),  # one of four shares and counts that only make sense together
    ("runs", "open_run", "name"),  # the third part of the path root / experiment / name
}
LEADING = ("key", "model")  # in this order, before everything else
KEYS = ("keys", "model_keys")  # the keys of many models may stand where one key does


def _modules(*tops: str) -> list[str]:
    files = itertools.chain.from_iterable((ROOT / top).rglob("*.py") for top in tops)
    return sorted(str(path.relative_to(ROOT)) for path in files)


def _name(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _room(module: str) -> str | None:
    """The first two parts of the name; None for the packages themselves."""
    parts = module.split(".")
    return ".".join(parts[:2]) if len(parts) > 1 else None


def _imports(tree: ast.AST, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """Every imported dotted name, with its line; ``from a import b`` is ``a.b``, relative imports are resolved."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".")
            base = parts[: len(parts) - node.level + is_package] if node.level else []
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{prefix}.{alias.name}") for alias in node.names)


def _dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def upward_imports(path: str, source: str) -> list[str]:
    """A room imports from itself and from lower floors."""
    module = _name(path)
    room, found = _room(module), []
    if room is None:
        return []
    if room not in FLOORS:
        return [f"{path}: room {room} has no floor; add it to FLOORS and to the design"]
    for line, imported in _imports(ast.parse(source), module, path.endswith("__init__.py")):
        if imported.split(".")[0] not in ("d3mjax", "experiments"):
            continue
        other = _room(imported)
        if other != room and FLOORS.get(other or "", 99) >= FLOORS[room]:
            found.append(f"{path}:{line}: {room} (floor {FLOORS[room]}) imports {imported}")
    return found


def impurities(path: str, source: str) -> list[str]:
    """Files, devices, clocks and the environment belong to runtime, data and experiments."""
    module, tree, found = _name(path), ast.parse(source), []
    if _room(module) in IMPURE_ROOMS:
        return []
    for line, imported in _imports(tree, module, path.endswith("__init__.py")):
        if imported.split(".")[0] in IMPURE_MODULES:
            found.append(f"{path}:{line}: imports {imported}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in IMPURE_NAMES:
            found.append(f"{path}:{node.lineno}: calls {node.func.id}")
        if isinstance(node, ast.Attribute) and _dotted(node) in IMPURE_ATTRIBUTES:
            found.append(f"{path}:{node.lineno}: uses {_dotted(node)}")
    return found


def _public_functions(source: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.parse(source).body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not node.name.startswith("_"):
            yield node


def misplaced_arguments(path: str, source: str) -> list[str]:
    """``key`` first, then ``model``; what has a default is keyword-only, unless it is all there is."""
    found = []
    for function in _public_functions(source):
        where = f"{path}:{function.lineno}: {function.name}"
        positional = [a.arg for a in (*function.args.posonlyargs, *function.args.args)]
        leading = [name for name in LEADING if name in positional]
        begin = 1 if positional and positional[0] in KEYS else 0
        if positional[begin : begin + len(leading)] != leading:
            found.append(f"{where}: arguments {positional} must begin with {leading}")
        for name in positional[len(positional) - len(function.args.defaults) :]:
            if len(positional) > 1 and (Path(path).stem, function.name, name) not in POSITIONAL_DEFAULTS:
                found.append(f"{where}: {name} has a default and must be keyword-only")
        for name in (a.arg for a in function.args.kwonlyargs if a.arg in LEADING):
            found.append(f"{where}: {name} must be positional")
    return found


def undocumented(path: str, source: str) -> list[str]:
    """Public functions have a docstring and annotate all they take and return."""
    found = []
    for function in _public_functions(source):
        where = f"{path}:{function.lineno}: {function.name}"
        arguments = function.args
        every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
        found += [f"{where}: {a.arg} has no annotation" for a in every if a and a.annotation is None]
        found += [f"{where}: no return annotation"] * (function.returns is None)
        found += [f"{where}: no docstring"] * (not ast.get_docstring(function))
    return found


def hidden_parameters(path: str, source: str) -> list[str]:
    """Public functions name what they take, ten parameters at most, and no ``**`` of anything."""
    found = []
    for function in _public_functions(source):
        arguments, where = function.args, f"{path}:{function.lineno}: {function.name}"
        count = len([*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs])
        if count > MAX_PARAMETERS:
            found.append(f"{where}: {count} parameters, expected at most {MAX_PARAMETERS}")
        if arguments.kwarg:
            found.append(f"{where}: **{arguments.kwarg.arg} hides parameters; take a tuple of options")
    return found


def long_files(path: str, source: str) -> list[str]:
    """A file is read at one sitting."""
    count = len(source.splitlines())
    return [f"{path}: {count} lines, expected at most {MAX_LINES}"] * (count > MAX_LINES)


def shared_generators(path: str, source: str) -> list[str]:
    """Test data do not depend on which tests ran before: no generator with state belongs to a module."""
    return [
        f"{path}:{node.lineno}: a generator that tests share; make data in a fixture or function with its own seed"
        for node in ast.parse(source).body
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and isinstance(node.value, ast.Call)
        if _dotted(node.value.func).split(".")[-1] in ("default_rng", "RandomState", "Random")
    ]


def retired_spellings(path: str, source: str) -> list[str]:
    """Nothing that JAX has replaced."""
    tree, found = ast.parse(source), []
    for line, imported in _imports(tree, _name(path), path.endswith("__init__.py")):
        if imported.startswith("jax.experimental.shard_map") or imported.split(".")[-1] in RETIRED:
            found.append(f"{path}:{line}: imports {imported}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            name = _dotted(node)
            if name.startswith("jax.experimental.shard_map") or (name.startswith("jax.") and node.attr in RETIRED):
                found.append(f"{path}:{node.lineno}: uses {name}")
    return found


RULES = [
    (upward_imports, ("d3mjax", "experiments")),
    (impurities, ("d3mjax",)),
    (misplaced_arguments, ("d3mjax",)),
    (undocumented, ("d3mjax",)),
    (hidden_parameters, ("d3mjax",)),
    (long_files, ("d3mjax", "experiments")),
    (shared_generators, ("tests",)),
    (retired_spellings, ("d3mjax", "experiments", "tests")),
]


@pytest.mark.parametrize(("rule", "tops"), RULES, ids=[rule.__name__ for rule, _ in RULES])
def test_every_module_keeps_the_rule(rule, tops):
    paths = _modules(*tops)
    assert len(paths) > 10
    found = [line for path in paths for line in rule(path, (ROOT / path).read_text(encoding="utf-8"))]
    assert not found, f"{rule.__doc__}\n" + "\n".join(found)


BAD = [
    (upward_imports, "d3mjax/linalg/ridge.py", "from d3mjax.training import masks"),
    (upward_imports, "d3mjax/training/train.py", "import d3mjax.data.splits"),  # same floor, other room
    (upward_imports, "d3mjax/training/train.py", "from ..attribution import outputs"),
    (upward_imports, "d3mjax/training/__init__.py", "from ..debiasing.loop import Rounds"),
    (upward_imports, "d3mjax/types.py", "from d3mjax import metrics"),
    (upward_imports, "d3mjax/runtime/sweep.py", "def f():\n    from experiments import report"),
    (upward_imports, "d3mjax/newroom/module.py", ""),
    (upward_imports, "d3mjax/commands/debias.py", "from experiments.d3m import d3m"),
    (upward_imports, "experiments/bias/fmd.py", "from experiments.d3m import ablations"),  # another wing
    (upward_imports, "experiments/tasks.py", "from experiments.d3m import ablations"),
    (upward_imports, "d3mjax/debiasing/loop.py", "import d3mjax"),  # the package itself belongs to nobody below it
    (impurities, "d3mjax/debiasing/loop.py", "with open('x') as f:\n    pass"),
    (impurities, "d3mjax/types.py", "from os import environ"),
    (impurities, "d3mjax/types.py", "import os.path"),
    (impurities, "d3mjax/metrics.py", "def f():\n    from pathlib import Path"),
    (impurities, "d3mjax/linalg/ridge.py", "jax.config.update('jax_enable_x64', True)"),
    (impurities, "d3mjax/training/train.py", "n = len(jax.devices())"),
    (impurities, "d3mjax/training/train.py", "np.save('x', y)"),
    (misplaced_arguments, "d3mjax/metrics.py", "def f(x: int, key: int): pass"),
    (misplaced_arguments, "d3mjax/metrics.py", "def f(model: int, key: int): pass"),
    (misplaced_arguments, "d3mjax/metrics.py", "def f(x: int, model: int): pass"),
    (misplaced_arguments, "d3mjax/metrics.py", "def f(x: int, *, key: int): pass"),
    (misplaced_arguments, "d3mjax/metrics.py", "def f(keys: int, x: int, model: int): pass"),
    (misplaced_arguments, "d3mjax/metrics.py", "def f(x: int, scale: float = 1.0): pass"),
    (misplaced_arguments, "d3mjax/metrics.py", "def f(x: int, seed: int = 0): pass"),
    (undocumented, "d3mjax/metrics.py", "def f(x: int) -> int: return x"),
    (undocumented, "d3mjax/metrics.py", "def f(x) -> int:\n    'Doc.'"),
    (undocumented, "d3mjax/metrics.py", "def f(*x) -> int:\n    'Doc.'"),
    (undocumented, "d3mjax/metrics.py", "def f(*, x) -> int:\n    'Doc.'"),
    (undocumented, "d3mjax/metrics.py", "def f(x: int):\n    'Doc.'"),
    (hidden_parameters, "d3mjax/metrics.py", f"def f({', '.join(f'x{i}' for i in range(11))}): pass"),
    (hidden_parameters, "d3mjax/metrics.py", "def f(x: int, **options: Any): pass"),
    (long_files, "d3mjax/metrics.py", "x = 1\n" * 401),
    (shared_generators, "tests/test_x.py", "RNG = np.random.default_rng(0)"),
    (shared_generators, "tests/test_x.py", "RNG: object = random.Random(0)"),
    (retired_spellings, "tests/test_x.py", "key = jax.random.PRNGKey(0)"),
    (retired_spellings, "tests/test_x.py", "from jax.experimental.shard_map import shard_map"),
    (retired_spellings, "tests/test_x.py", "from jax.experimental import shard_map"),
    (retired_spellings, "tests/test_x.py", "from jax import pmap"),
    (retired_spellings, "tests/test_x.py", "y = jax.tree_map(f, x)"),
]
GOOD = [
    (upward_imports, "d3mjax/linalg/ridge.py", "from d3mjax.types import Solve\nfrom d3mjax.linalg import iterative"),
    (upward_imports, "d3mjax/debiasing/loop.py", "from .selection import drop_lowest\nimport jax, experimentsx"),
    (upward_imports, "experiments/d3m/d3m.py", "from d3mjax.runtime import runs\nfrom experiments import study, tasks"),
    (upward_imports, "experiments/d3m/d3m.py", "from experiments.d3m import ablations"),
    (upward_imports, "experiments/__main__.py", "from experiments.d3m import ablations"),
    (impurities, "d3mjax/runtime/store.py", "import os\nopen('x')"),
    (impurities, "d3mjax/metrics.py", "from jax.sharding import Mesh\nx.open()\nos = 1"),
    (misplaced_arguments, "d3mjax/metrics.py", "def f(key: int, model: int, x: int, *, scale: float = 1.0): pass"),
    (misplaced_arguments, "d3mjax/data/adult.py", "def load(seed: int = 0, *, size: int = 1): pass"),
    (misplaced_arguments, "d3mjax/metrics.py", "def _f(x, key=None): pass"),
    (misplaced_arguments, "d3mjax/metrics.py", "def f(keys: int, model: int, x: int): pass"),
    (misplaced_arguments, "d3mjax/metrics.py", "def f(trainer: int, keys: int): pass"),
    (undocumented, "d3mjax/metrics.py", "def f(x: int, *y: int, **z: int) -> int:\n    'Doc.'\ndef _g(x): pass"),
    (hidden_parameters, "d3mjax/metrics.py", "def f(x: int, *, arrays: Mapping): pass\ndef _f(**options): pass"),
    (long_files, "d3mjax/metrics.py", "x = 1\n" * 400),
    (shared_generators, "tests/test_x.py", "X = np.random.default_rng(0).normal(size=3)\nKEY = jax.random.key(0)"),
    (shared_generators, "tests/test_x.py", "def f():\n    rng = np.random.default_rng(0)"),
    (retired_spellings, "tests/test_x.py", "jax.tree.map(f, x)\njax.shard_map(f)\njax.random.key(0)"),
]


@pytest.mark.parametrize(("rule", "path", "source"), BAD)
def test_rules_find_offenders(rule, path, source):
    assert len(rule(path, source)) == 1


@pytest.mark.parametrize(("rule", "path", "source"), GOOD)
def test_rules_leave_the_rest_alone(rule, path, source):
    assert rule(path, source) == []


def test_the_face_exists_and_every_function_of_it_has_an_example():
    missing = [name for name in d3mjax.__all__ if not hasattr(d3mjax, name)]
    assert not missing
    functions = {name: value for name, value in vars(d3mjax).items() if name in d3mjax.__all__ and callable(value)}
    bare = [n for n, f in functions.items() if inspect.isfunction(f) and ">>>" not in (inspect.getdoc(f) or "")]
    assert not bare


@pytest.mark.parametrize(("path", "lines"), [("README.md", 220), ("experiments/README.md", 300)])
def test_a_page_that_people_read_first_is_short(path, lines):
    assert len((ROOT / path).read_text(encoding="utf-8").splitlines()) <= lines
