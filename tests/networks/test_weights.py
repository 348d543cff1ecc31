"""Rules from published names to variables: every tensor once, every variable once, or an error that names them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3mjax.networks import adapt, dense, weights
from d3mjax.networks.weights import Rule

RULES = [
    Rule(r"conv(\d)\.weight", r"params/conv_\1/kernel", weights.rows_first),
    Rule(r"fc\.weight", "params/head/kernel", weights.transposed),
    Rule(r"fc\.bias", "params/head/bias"),
    Rule(r"aux\.weight", "params/aux/kernel", weights.transposed, optional=True),
    Rule(r".*\.num_batches_tracked", None),
]


def _float(*shape):
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def _tensors():
    tensors = {"conv0.weight": _float(2, 3, 4, 5), "fc.weight": _float(6, 2), "fc.bias": _float(6)}
    return tensors | {"bn.num_batches_tracked": np.array(7)}


def _shapes():
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, np.float32)
    return {"params": {"conv_0": {"kernel": shape(4, 5, 3, 2)}, "head": {"kernel": shape(2, 6), "bias": shape(6)}}}


def test_tensors_lie_as_our_layers_expect():
    tensors = _tensors()
    params = weights.convert(tensors, _shapes(), RULES)["params"]
    assert params["conv_0"]["kernel"][3, 2, 1, 0] == tensors["conv0.weight"][0, 1, 3, 2]
    assert params["head"]["kernel"][1, 4] == tensors["fc.weight"][4, 1]
    np.testing.assert_array_equal(params["head"]["bias"], tensors["fc.bias"])
    leaves = jax.tree.leaves(params)
    assert {leaf.dtype for leaf in leaves} == {np.dtype("float32")}
    assert all(leaf.flags.c_contiguous for leaf in leaves)


def test_the_first_rule_that_matches_the_whole_name_counts():
    rules = [Rule("fc.bias", None), *RULES]
    with pytest.raises(ValueError, match=r"found 1 mismatches.*no tensor for params/head/bias \[6\]"):
        weights.convert(_tensors(), _shapes(), rules)
    with pytest.raises(ValueError, match=r"tensor xfc\.bias \[6\] has no rule"):
        weights.convert(_tensors() | {"xfc.bias": _float(6)}, _shapes(), RULES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer.weight": _float(2)}, r"found 1 mismatches.*tensor layer\.weight \[2\] has no rule"),
        (
            {"conv1.weight": _float(2)},
            r"tensor conv1\.weight \[2\] is for params/conv_1/kernel, which is not in the network",
        ),
        ({"fc.weight": _float(5, 2)}, r"fc\.weight has shape \[5 2\].*params/head/kernel \[2 6\]"),
        ({"fc.weight": _float(12)}, r"fc\.weight has shape \[12\]"),
        ({"fc.bias": np.arange(6)}, r"fc\.bias has type int64"),
        ({"fc.bias": np.full(6, np.nan, np.float32)}, r"fc\.bias is not finite"),
    ],
)
def test_a_mismatch_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        weights.convert(_tensors() | change, _shapes(), RULES)


def test_two_tensors_for_one_variable_and_many_mismatches():
    rules = [Rule(r"fc\.bias2?", "params/head/bias"), *RULES]
    with pytest.raises(ValueError, match=r"fc\.bias2 is the second for params/head/bias"):
        weights.convert(_tensors() | {"fc.bias2": _float(6)}, _shapes(), rules)
    other = {f"layer{i}.weight": _float(2) for i in range(9)}
    with pytest.raises(ValueError, match=r"found 12 mismatches.*layer4.*; and 7 more\. Are these the weights of ano"):
        weights.convert(other, _shapes(), RULES)


def test_fresh_parts_are_left_out_with_their_tensors_and_optional_ones_where_the_network_lacks_them():
    tensors = _tensors() | {"fc.weight": _float(1000, 2), "fc.bias": _float(1000), "aux.weight": _float(3, 3)}
    variables = weights.convert(tensors, _shapes(), RULES, fresh=("params/head",))
    assert list(variables["params"]) == ["conv_0"]
    with pytest.raises(ValueError, match="fc"):  # a prefix is a whole key
        weights.convert(tensors, _shapes(), RULES, fresh=("params/hea",))
    shapes = _shapes()
    shapes["params"]["aux"] = {"kernel": jax.ShapeDtypeStruct((3, 3), np.float32)}
    assert "aux" in weights.convert(tensors, shapes, RULES, fresh=("params/head",))["params"]


def test_starting_from_variables_in_many_models_and_by_hand():
    model, x = dense.mlp((4,), 2), jnp.ones((1, 3))
    kernel = _float(3, 4)
    started = adapt.starting_from(model, {"params": {"Dense_0": {"kernel": kernel}}})
    keys = jax.random.split(jax.random.key(0), 3)
    many = jax.jit(lambda keys: jax.lax.map(lambda key: started.init(key, x), keys, batch_size=2))(keys)["params"]
    drawn = jax.vmap(lambda key: model.init(key, x))(keys)["params"]
    np.testing.assert_array_equal(many["Dense_0"]["kernel"], np.broadcast_to(kernel, (3, 3, 4)))
    np.testing.assert_array_equal(many["Dense_1"]["kernel"], drawn["Dense_1"]["kernel"])
    assert jax.tree.structure(many) == jax.tree.structure(drawn)


def test_the_start_is_no_part_of_the_program():
    model = dense.linear(2)
    started = adapt.starting_from(model, {"params": {"Dense_0": {"kernel": np.zeros((5000, 2), np.float32)}}})
    x = jnp.ones((1, 5000))
    size = lambda m: len(jax.jit(lambda key: m.init(key, x)).lower(jax.random.key(0)).as_text())
    assert size(started) < size(model) + 2000


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [("kernel", (4, 3), r"kernel.* of shape \(4, 3\), expected \(3, 2\)"), ("other", (3,), "expected no such name")],
)
def test_a_start_that_does_not_fit_is_named(name, shape, message):
    started = adapt.starting_from(dense.linear(2), {"params": {"Dense_0": {name: np.zeros(shape, np.float32)}}})
    with pytest.raises(ValueError, match=message):
        started.init(jax.random.key(0), jnp.ones((1, 3)))
