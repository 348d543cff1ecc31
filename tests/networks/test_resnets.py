"""ResNets against a NumPy oracle that reads the same published tensors: features, heads, running statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import planted
import published_images as published
import pytest

from d3mjax.networks import conv, resnets
from d3mjax.networks.adapt import starting_from

BASIC = resnets.ResnetConfig((1, 2, 1, 1), bottleneck=False, width=4)
BOTTLENECK = resnets.ResnetConfig((2, 1, 1, 1), width=2)
IMAGE = (3, 38, 34, 3)  # odd sizes after the first strides: 19 x 17, 10 x 9, 5 x 5, 3 x 3, 2 x 2
TERMS = 12 * 9 * 32  # convolutions in a row, times the length of a sum


def _images():
    return np.asarray(planted.normal(5, *IMAGE))


@pytest.mark.parametrize("convolve", [conv.convolve_lax, conv.convolve_shifted])
@pytest.mark.parametrize("config", [BASIC, BOTTLENECK])
def test_published_tensors_give_the_features_of_the_oracle(config, convolve):
    tensors, x = published.resnet_tensors(config), _images()
    model = resnets.encoder(config._replace(convolve=convolve))
    variables = resnets.from_published(model, tensors)  # a head is left out
    for train in (False, True):
        features, after = jax.jit(lambda v, x, train=train: model.apply(v, x, train=train))(variables, x)
        expected, running = published.resnet_features(config, tensors, x, train=train)
        planted.close(features, expected, terms=TERMS)
        statistics = resnets.from_published(model, tensors | running)["batch_stats"]
        planted.close(after["batch_stats"], statistics, terms=TERMS)


def test_logits_are_the_head_of_the_features():
    tensors, x = published.resnet_tensors(BASIC), _images()
    model = resnets.classifier(BASIC, 3)
    features, _ = published.resnet_features(BASIC, tensors, x, train=False)
    logits, after = model.apply(variables := resnets.from_published(model, tensors), x)
    planted.close(logits, features @ tensors["fc.weight"].T + tensors["fc.bias"], terms=TERMS)
    assert after is variables


def test_a_training_step_of_one_pixel_and_one_image_is_finite():
    model = resnets.classifier(BASIC, 2)
    x = _images()[:1, :16, :16]  # one pixel is left in the last stage
    logits, after = model.apply(jax.jit(model.init)(jax.random.key(0), x), x, train=True)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((logits, after)))


def test_bfloat16_computes_near_float32_and_keeps_float32():
    tensors, x = published.resnet_tensors(BASIC), _images()
    half = resnets.classifier(BASIC._replace(dtype=jnp.bfloat16), 3)
    variables = resnets.from_published(half, tensors)
    logits, after = half.apply(variables, x, train=True)
    assert {leaf.dtype for leaf in jax.tree.leaves((logits, after))} == {np.dtype("float32")}
    exact, _ = resnets.classifier(BASIC, 3).apply(variables, x, train=True)
    error = np.abs(np.asarray(logits - exact)).max() / np.abs(exact).max()
    assert 0 < error < 12 * float(jnp.finfo(jnp.bfloat16).eps)  # convolutions in a row


@pytest.mark.parametrize(
    ("config", "count"),
    [(resnets.RESNET18, 11_689_512), (resnets.RESNET34, 21_797_672), (resnets.RESNET50, 25_557_032)],
)
def test_published_sizes(config, count):
    variables = jax.eval_shape(resnets.classifier(config, 1000).init, jax.random.key(0), np.zeros((1, 32, 32, 3)))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == count


def test_a_fresh_head_for_other_classes_and_weights_of_another_depth():
    tensors = published.resnet_tensors(BASIC, num_classes=1000)
    model = resnets.classifier(BASIC, 2)
    start = starting_from(model, resnets.from_published(model, tensors, fresh=("head",)))
    drawn = jax.jit(start.init)(jax.random.key(0), _images())
    np.testing.assert_array_equal(drawn["params"]["conv1"], tensors["conv1.weight"].transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(drawn["batch_stats"]["norm1"]["var"], tensors["bn1.running_var"])
    assert drawn["params"]["head"]["kernel"].shape == (32, 2)
    with pytest.raises(ValueError, match=r"found 2 mismatches.*fc\.weight has shape \[1000 32\]"):
        resnets.from_published(model, tensors)
    other = resnets.classifier(BASIC._replace(blocks=(1, 1, 1, 1)), 2)
    with pytest.raises(ValueError, match=r"layer2\.1\.conv1\.weight .* is for params/block_2_1/conv1, which is not"):
        resnets.from_published(other, tensors, fresh=("head",))
