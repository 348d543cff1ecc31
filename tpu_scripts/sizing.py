"""What two large runs take on paper: FLOPs, bytes, chip-hours and money. Prints the tables of README.md.

`language_sizing.py` is of language models; `step_memory.py` has XLA's own count of the memory of a training step.

    python tpu_scripts/sizing.py                                        # as in README.md
    python tpu_scripts/sizing.py --utilisation 0.35 --price v5e=1.00    # your measurement, your price a chip-hour

Units: FLOP (a multiply-add is two), bytes, seconds, chip-hours. MAC is a multiply-add. Everything that is neither a
convolution nor a matrix product (normalisation, augmentation, optimiser) counts as nothing: measured utilisation pays.
"""

import argparse
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Convolution(NamedTuple):
    """``size x size`` without bias from ``inputs`` to ``outputs`` channels of ``side x side``; then normalisation."""

    size: int
    inputs: int
    outputs: int
    side: int


class Network(NamedTuple):
    """Convolutions, each with scale and shift of its normalisation, and one dense layer."""

    name: str
    convolutions: Sequence[Convolution]
    features: int
    classes: int
    dense_bias: bool


def resnet9(classes: int = 10) -> Network:
    """`d3mjax.training.convolutions.resnet9` on 32 x 32 x 3."""
    residual = lambda channels, side: [Convolution(3, channels, channels, side)] * 2
    convolutions = [Convolution(3, 3, 64, 32), Convolution(5, 64, 128, 16), *residual(128, 16)]
    convolutions += [Convolution(3, 128, 256, 16), *residual(256, 8), Convolution(3, 256, 128, 6)]
    return Network("ResNet-9, 32 px", convolutions, 128, classes, dense_bias=False)


def resnet50(classes: int = 2, pixels: int = 224) -> Network:
    """Bottleneck blocks 3, 4, 6, 3, the stride in the 3 x 3 convolution, a projection where the shape changes."""
    convolutions = [Convolution(7, 3, 64, pixels // 2)]
    channels, side = 64, pixels // 4
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width, after = 64 << stage, pixels // 4 >> stage
        for block in range(blocks):
            convolutions += [Convolution(1, channels, width, side), Convolution(3, width, width, after)]
            convolutions += [Convolution(1, width, 4 * width, after)]
            if block == 0:
                convolutions += [Convolution(1, channels, 4 * width, after)]
            channels, side = 4 * width, after
    return Network(f"ResNet-50, {pixels} px", convolutions, channels, classes, dense_bias=True)


class Transformer(NamedTuple):
    """`d3mjax.networks.transformers.classifier` on texts of ``tokens``; BERT-base unless sizes are given."""

    name: str = "BERT-base, 128 tokens"
    tokens: int = 128
    vocabulary: int = 30_522
    width: int = 768
    blocks: int = 12
    heads: int = 12
    inner: int = 3072
    positions: int = 512
    types: int = 2
    classes: int = 3


def parameters(network: Network | Transformer) -> int:
    """``sum size^2 inputs outputs + 2 outputs``, and the dense layer; tables, blocks, pooler and head of a transformer.

    A block has four square layers, two of ``inner`` units, and two norms.
    """
    if isinstance(network, Transformer):
        width, inner = network.width, network.inner
        block = 4 * (width**2 + width) + 2 * width * inner + inner + width + 4 * width
        tables = (network.vocabulary + network.positions + network.types + 2) * width  # 2 for the norm
        return tables + network.blocks * block + width**2 + width + (width + 1) * network.classes
    convolutions = sum(c.size**2 * c.inputs * c.outputs + 2 * c.outputs for c in network.convolutions)
    return convolutions + (network.features + network.dense_bias) * network.classes


def forward_macs(network: Network | Transformer) -> int:
    """MAC of one example forward: ``sum size^2 inputs outputs side^2``, and the dense layer; borders count in full.

    Of a transformer ``blocks tokens (4 width^2 + 2 width inner + 2 tokens width)``, pooler and head.
    """
    if isinstance(network, Transformer):
        width, tokens = network.width, network.tokens
        block = tokens * (4 * width**2 + 2 * width * network.inner + 2 * tokens * width)
        return network.blocks * block + width**2 + width * network.classes
    convolutions = sum(c.size**2 * c.inputs * c.outputs * c.side**2 for c in network.convolutions)
    return convolutions + network.features * network.classes


def activations(network: Network | Transformer) -> int:
    """Numbers that training keeps of one example: outputs of convolutions before and after normalisation and ReLU.

    Of a transformer: eight states a block (query, key, value, attended, and both sums before and after the norm), inner
    units before and after the GELU, and attention before and after the softmax.
    """
    if isinstance(network, Transformer):
        tokens = network.tokens
        return network.blocks * 2 * tokens * (4 * network.width + network.inner + network.heads * tokens)
    return 2 * sum(c.outputs * c.side**2 for c in network.convolutions)


def training_flops(network: Network | Transformer) -> int:
    """FLOP of one example forward and backward: ``6 MAC``, for backward takes twice as much as forward."""
    return 6 * forward_macs(network)


def state_bytes(network: Network | Transformer) -> int:
    """Bytes of float32 parameters, momentum and gradients: ``12 parameters``."""
    return 12 * parameters(network)


class Chip(NamedTuple):
    """A TPU chip as in Google Cloud's documentation, which says GiB of v4 and GB of the others."""

    name: str
    peak: float  # FLOP a second, bfloat16
    memory: float  # bytes
    bandwidth: float  # bytes a second


CHIPS = (
    Chip("v4", 275e12, 32 * 2**30, 1200e9),
    Chip("v5e", 197e12, 16e9, 819e9),
    Chip("v5p", 459e12, 95e9, 2765e9),
)


class Datamodels(NamedTuple):
    """CIFAR-10 at the paper's scale: models on random halves, with the recipe `recipes.datamodels_cifar10`."""

    models: int = 300_000
    examples: int = 50_000
    kept: int = 25_000
    targets: int = 10_000
    epochs: int = 24
    batch: int = 512
    lambdas: int = 50  # penalties of the LASSO, and the steps at each
    lasso_steps: int = 100


def model_flops(run: Datamodels) -> int:
    """FLOP of a model: ``epochs (kept // batch) batch`` examples trained on, and all targets forward."""
    seen = run.epochs * (run.kept // run.batch) * run.batch
    return seen * training_flops(resnet9()) + run.targets * 2 * forward_macs(resnet9())


def model_bytes(run: Datamodels) -> int:
    """Bytes on the chip for each model in training: its state, and bfloat16 activations of a batch."""
    return state_bytes(resnet9()) + 2 * run.batch * activations(resnet9())


def models_at_once(run: Datamodels, chip: Chip, *, filled: float = 0.8) -> int:
    """How many fit on a chip filled to 80 %, beside all images in float32."""
    images = 4 * (run.examples + run.targets) * 32 * 32 * 3
    return int((filled * chip.memory - images) // model_bytes(run))


def bank_bytes(run: Datamodels) -> int:
    """Bytes on disk: of each model two ids and a loss (20), float32 outputs, and a mask of packed bits."""
    return run.models * (20 + 4 * run.targets + -(-run.examples // 8))


def fit_flops(run: Datamodels) -> int:
    """FLOP of a LASSO of all targets: the Gram ``2 m n^2``, and ``2 n^2 t`` a step."""
    return 2 * run.examples**2 * (run.models + run.targets * run.lambdas * run.lasso_steps)


class D3M(NamedTuple):
    """D3M on CelebA: ResNet-50 checkpoints, TRAK group columns. Epochs are those of Group DRO's recipe."""

    checkpoints: int = 100
    examples: int = 162_770
    targets: int = 19_867
    groups: int = 4
    epochs: int = 50
    batch: int = 128
    projected: int = 4096
    microbatch: int = 16  # per-example gradients at a time


def d3m_training_flops(run: D3M) -> int:
    """FLOP of all checkpoints: ``checkpoints epochs examples 6 MAC``."""
    return run.checkpoints * run.epochs * run.examples * training_flops(resnet50())


def d3m_attribution_flops(run: D3M) -> int:
    """FLOP of `trak.group_scores`: gradients of all examples, G tangents forward, G gradients of targets, the Gram.

    In MAC of a forward pass: ``6 n`` for gradients, ``(2 + 4 G) n`` for the pass with tangents, ``(2 + 4 G) t`` for the
    targets; and ``2 n p^2``, six times as the highest precision takes six bfloat16 products.
    """
    passes = 6 * run.examples + (2 + 4 * run.groups) * (run.examples + run.targets)
    return run.checkpoints * (passes * forward_macs(resnet50()) + 12 * run.examples * run.projected**2)


def projection_bytes(run: D3M) -> int:
    """Bytes through the chip's memory to write and read every gradient once: ``8 parameters examples checkpoints``."""
    return 8 * parameters(resnet50()) * run.examples * run.checkpoints


def image_bytes(examples: int) -> int:
    """Bytes of so many images of 224 x 224 x 3 as uint8."""
    return examples * 224 * 224 * 3


def working_bytes(run: D3M, shares: int) -> int:
    """On each of ``shares`` chips: a share of images and batch; targets, state, gradients of examples and groups."""
    spread = image_bytes(run.examples) + 2 * run.batch * activations(resnet50())
    gradients = 4 * (run.microbatch + run.groups) * parameters(resnet50())
    return -(-spread // shares) + image_bytes(run.targets) + state_bytes(resnet50()) + gradients


def smallest_data_axis(run: D3M, chip: Chip, *, filled: float = 0.8) -> int:
    """The smallest power of two of chips a model of which each has room, filled to 80 %."""
    shares = 1
    while working_bytes(run, shares) > filled * chip.memory:
        shares *= 2
    return shares


def chip_hours(flops: float, chip: Chip, utilisation: float) -> float:
    """``flops / (peak utilisation 3600)``."""
    return flops / (chip.peak * utilisation * 3600)


def tables(utilisation: float, prices: Mapping[str, float]) -> str:
    """All of it as markdown. ``prices``: money a chip-hour by chip; without one the cost is in units of P."""

    def cost(chip: Chip, hours: float) -> str:
        return number(hours * prices[chip.name]) if chip.name in prices else f"{number(hours)} P"

    def networks(network: Network | Transformer) -> dict[str, str]:
        return {
            "network": network.name,
            "parameters": f"{parameters(network):,}",
            "forward, GMAC": number(forward_macs(network) / 1e9),
            "training, GFLOP an example": number(training_flops(network) / 1e9),
            "activations, MB an example": number(2 * activations(network) / 1e6),
            "state, MB": number(state_bytes(network) / 1e6),
        }

    def datamodels(chip: Chip) -> dict[str, str]:
        each, fit = (chip_hours(flops, chip, utilisation) for flops in (model_flops(a), fit_flops(a)))
        return {
            "chip": chip.name,
            "models a chip-hour": number(1 / each),
            "models at once": f"{models_at_once(a, chip)}",
            "chip-hours, models": number(a.models * each),
            "chip-hours, fit": number(fit),
            "cost": cost(chip, a.models * each + fit),
        }

    def d3m(chip: Chip) -> dict[str, str]:
        work = (d3m_training_flops(b), d3m_attribution_flops(b))
        training, columns = (chip_hours(flops, chip, utilisation) for flops in work)
        moved = projection_bytes(b) / chip.bandwidth / 3600
        data = smallest_data_axis(b, chip)
        return {
            "chip": chip.name,
            "checkpoints a chip-hour": number(b.checkpoints / (training + columns + moved)),
            "chips along `data`": f"{data}",
            "memory a chip, GB": number(working_bytes(b, data) / 1e9),
            "chip-hours, training": number(training),
            "chip-hours, columns": number(columns),
            "chip-hours, gradients moved": number(moved),
            "cost": cost(chip, training + columns + moved),
        }

    a, b = Datamodels(), D3M()
    of_datamodels = {
        "FLOP a model": number(model_flops(a)),
        f"FLOP of {a.models:,} models": number(a.models * model_flops(a)),
        f"memory a model, batch {a.batch}, GB": number(model_bytes(a) / 1e9),
        "bank: masks and outputs, GB": number(bank_bytes(a) / 1e9),
        "Gram of the fit, float32, on every chip, GB": number(4 * a.examples**2 / 1e9),
        "FLOP of the LASSO": number(fit_flops(a)),
    }
    of_d3m = {
        f"FLOP of {b.checkpoints} trainings of {b.epochs} epochs": number(d3m_training_flops(b)),
        "FLOP of their group columns": number(d3m_attribution_flops(b)),
        "gradients through memory, PB": number(projection_bytes(b) / 1e15),
        f"{b.microbatch} gradients at a time, GB": number(4 * b.microbatch * parameters(resnet50()) / 1e9),
        "images, uint8, GB": number(image_bytes(b.examples) / 1e9),
        f"{b.checkpoints} checkpoints, GB": number(4 * b.checkpoints * parameters(resnet50()) / 1e9),
        "group columns of every checkpoint, GB": number(4 * b.checkpoints * b.examples * b.groups / 1e9),
        f"features, p = {b.projected}, if kept, GB": number(4 * b.checkpoints * b.examples * b.projected / 1e9),
    }
    listed = lambda facts: table([{"quantity": name, "value": value} for name, value in facts.items()])
    parts = (
        table([networks(network) for network in (resnet9(), resnet50(), Transformer())]),
        f"**(a) Datamodels of CIFAR-10: {a.models:,} ResNet-9 on halves of {a.examples:,}, {a.targets:,} targets**",
        listed(of_datamodels),
        table([datamodels(chip) for chip in CHIPS]),
        f"**(b) D3M on CelebA: {b.examples:,} examples x {b.checkpoints} checkpoints of ResNet-50 at 224 px**",
        listed(of_d3m),
        table([d3m(chip) for chip in CHIPS]),
    )
    return "\n\n".join(parts)


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Markdown, the first column to the left and the others to the right."""
    lines = [list(rows[0]), ["---", *["---:"] * (len(rows[0]) - 1)], *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: float) -> str:
    """Three digits, or all those before the point; such as 1.04e15 from a million million."""
    text = f"{value:.2e}" if value >= 1e12 else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    return text.replace("e+", "e")


def price(text: str) -> tuple[str, float]:
    """``v5e=1.00``, or ValueError, which argparse reports."""
    (name,) = (chip.name for chip in CHIPS if text.startswith(f"{chip.name}="))
    return name, float(text.removeprefix(f"{name}="))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the utilisation and the prices."""
    parser.add_argument("--utilisation", type=float, default=0.2, help="share of the peak that is reached (0.2)")
    parser.add_argument("--price", type=price, action="append", default=[], help="money a chip-hour, such as v5e=1.00")


def checked_options(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, or the parser's error."""
    options = parser.parse_args(arguments)
    if not 0 < options.utilisation <= 1:
        parser.error(f"--utilisation: found {options.utilisation}, expected more than 0 and at most 1")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    options = checked_options(parser, arguments)
    print(tables(options.utilisation, dict(options.price)))


if __name__ == "__main__":
    main()
