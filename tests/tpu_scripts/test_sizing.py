"""Sizes on paper against counts by hand, against published ones, and against our own network."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from d3mjax.networks import conv, resnets, transformers
from d3mjax.training import ensemble, objectives
from tpu_scripts import sizing

ROOT = Path(__file__).parents[2]


def test_a_small_network_by_hand():
    # 3 x 3 from 2 to 4 channels on 5 x 5: 72 weights, 8 of the normalisation, 72 * 25 = 1,800 MAC, 100 outputs.
    network = sizing.Network("small", [sizing.Convolution(3, 2, 4, 5)], features=4, classes=3, dense_bias=True)
    assert sizing.parameters(network) == 72 + 8 + 15
    assert sizing.forward_macs(network) == 1800 + 12
    assert sizing.activations(network) == 200
    assert sizing.training_flops(network) == 6 * 1812
    assert sizing.state_bytes(network) == 12 * 95


def test_resnet50_has_its_published_size():
    published = sizing.resnet50(classes=1000)
    assert sizing.parameters(published) == 25_557_032
    assert sizing.forward_macs(published) == 4_089_184_256
    # 2,049 = 2,048 weights and a bias fewer for each of 998 classes.
    assert sizing.parameters(sizing.resnet50()) == 25_557_032 - 998 * 2049


def test_a_small_transformer_by_hand():
    sizes = {"vocabulary": 11, "width": 4, "blocks": 2, "heads": 2, "inner": 6, "positions": 5, "types": 2}
    network = sizing.Transformer("small", 3, **sizes, classes=3)
    # Tables 18 x 4 and a norm of 8; a block: 4 x 20, 4 x 6 + 6 + 6 x 4 + 4, two norms of 8; pooler 20, head 15.
    assert sizing.parameters(network) == 72 + 8 + 2 * (80 + 58 + 16) + 20 + 15
    # A token: 4 x 16 + 2 x 24 of layers, 2 x 3 x 4 of attention.
    assert sizing.forward_macs(network) == 2 * 3 * (64 + 48 + 24) + 16 + 12
    # A block: 8 states of 3 x 4, 2 x 3 x 6 inner units, 2 x 2 heads of 3 x 3.
    assert sizing.activations(network) == 2 * (96 + 36 + 36)


def test_bert_is_our_own():
    model = transformers.classifier(transformers.BERT_BASE, 3)
    tokens = {name: jnp.zeros((1, 2), jnp.int32) for name in ("ids", "types")} | {"mask": jnp.ones((1, 2), bool)}
    params = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
    assert sizing.parameters(sizing.Transformer()) == sum(leaf.size for leaf in jax.tree.leaves(params))
    # BertModel as published has 109,482,240 with its pooler.
    assert sizing.parameters(sizing.Transformer()) == 109_482_240 + 769 * 3


def test_resnet50_is_our_own():
    variables = jax.eval_shape(
        resnets.classifier(resnets.RESNET50, 2).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3))
    )
    assert sizing.parameters(sizing.resnet50()) == sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def test_resnet9_is_our_own():
    model = conv.resnet9(10, norm=conv.batch_norm())
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    assert sizing.parameters(sizing.resnet9()) == sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    jaxpr = jax.make_jaxpr(lambda variables, x: model.apply(variables, x)[0])(variables, jnp.zeros((1, 32, 32, 3)))
    kernels = [
        (equation.invars[1].aval.shape, equation.outvars[0].aval.shape)
        for equation in jaxpr.jaxpr.eqns
        if equation.primitive.name == "conv_general_dilated"
    ]
    # Kernels are [kh kw c o], outputs [o h w b].
    found = [sizing.Convolution(k[0], k[2], k[3], out[1]) for k, out in kernels]
    assert found == list(sizing.resnet9().convolutions)


@pytest.mark.parametrize("num_devices", [1, 8])
def test_the_program_of_a_device_has_the_paper_flops(num_devices):
    """XLA's own count for one gradient of a ResNet-9 a device: of the paper figure but for zeros at the borders, which
    XLA leaves out, and the gradient of the images; the same however many devices and models there are.
    """
    model = conv.resnet9(10, norm=conv.batch_norm())
    devices = jax.make_mesh((num_devices,), ("model",), devices=jax.devices()[:num_devices])

    def one(key, x, y):
        variables = model.init(key, x[:1])

        def loss(params):
            logits, _ = model.apply({**variables, "params": params}, x, train=True)
            return objectives.losses(logits, y).mean()

        return jax.grad(loss)(variables["params"])

    run = jax.jit(ensemble.map_models(one, width=1, mesh=devices))
    shapes = ((num_devices, 16, 32, 32, 3), jnp.float32), ((num_devices, 16), jnp.int32)
    arrays = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
    counted = run.lower(jax.random.split(jax.random.key(0), num_devices), *arrays).cost_analysis()
    assert counted is not None
    assert 0.88 < counted["flops"] / (16 * sizing.training_flops(sizing.resnet9())) < 1


def test_datamodels_by_hand():
    run = sizing.Datamodels()
    # 24 epochs of 25,000 // 512 = 48 steps of 512 are 589,824 examples; 291,308,800 MAC each, six FLOP a MAC.
    assert sizing.forward_macs(sizing.resnet9()) == 291_308_800
    assert sizing.model_flops(run) == 589_824 * 6 * 291_308_800 + 10_000 * 2 * 291_308_800
    # A mask of 50,000 bits is 6,250 bytes, outputs are 40,000.
    assert sizing.bank_bytes(run) == 300_000 * (20 + 40_000 + 6250)
    # 27,298,560 of state; 512 examples of 2 x 266,752 activations of two bytes.
    assert sizing.model_bytes(run) == 27_298_560 + 512 * 2 * 266_752 * 2
    v5e = sizing.CHIPS[1]
    assert sizing.chip_hours(197e12 * 3600, v5e, 0.5) == pytest.approx(2)
    # 0.8 x 16 GB less 0.737 GB of images, in parts of 0.574 GB.
    assert sizing.models_at_once(run, v5e) == 21
    assert sizing.fit_flops(run) == 2 * 50_000**2 * (300_000 + 10_000 * 5000)


def test_d3m_by_hand():
    run = sizing.D3M(checkpoints=2, examples=10, targets=5, groups=3, epochs=7, projected=4)
    macs = sizing.forward_macs(sizing.resnet50())
    assert sizing.d3m_training_flops(run) == 2 * 7 * 10 * 6 * macs
    # Gradients 6 * 10; tangents (2 + 12) * 10; targets (2 + 12) * 5. The Gram: 2 * 10 * 16, six times.
    assert sizing.d3m_attribution_flops(run) == 2 * ((60 + 140 + 70) * macs + 1920)
    assert sizing.projection_bytes(run) == 8 * 23_512_130 * 20
    assert sizing.image_bytes(2) == 2 * 150_528
    full = sizing.D3M()
    for chip, axis in zip(sizing.CHIPS, (2, 4, 1), strict=True):
        assert sizing.smallest_data_axis(full, chip) == axis
        assert sizing.working_bytes(full, axis) <= 0.8 * chip.memory
        assert axis == 1 or sizing.working_bytes(full, axis // 2) > 0.8 * chip.memory


def test_the_readme_holds_what_the_command_prints():
    found = subprocess.run([sys.executable, "tpu_scripts/sizing.py"], cwd=ROOT, capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (0, "")
    _, inside, _ = (ROOT / "tpu_scripts" / "README.md").read_text().split("<!-- sizing -->\n")
    assert inside.strip() == found.stdout.strip()


def test_hours_fall_with_utilisation_and_prices_replace_units(capsys):
    sizing.main([])
    default = capsys.readouterr().out
    sizing.main(["--utilisation", "0.4", "--price", "v5e=2.5"])
    other = capsys.readouterr().out
    row = lambda text: next(line for line in text.splitlines() if line.startswith("| v5e |")).split(" | ")
    hours = lambda text: float(row(text)[3].replace(",", ""))
    assert hours(other) == pytest.approx(hours(default) / 2, rel=1e-3)
    assert row(default)[-1].endswith(" P |")
    # 1,096.4 chip-hours of models and 0.89 of the fit, at 2.50.
    assert row(other)[-1] == "2,743 |"


@pytest.mark.parametrize(
    "arguments", [["--utilisation", "20"], ["--utilisation", "0"], ["--price", "v5e"], ["--price", "h100=2"]]
)
def test_bad_arguments_are_refused(arguments, capsys):
    with pytest.raises(SystemExit):
        sizing.main(arguments)
    assert arguments[0] in capsys.readouterr().err
