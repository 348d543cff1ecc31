"""What preference tuning of a language model and its attribution take on paper. Prints the tables of README.md.

    python -m tpu_scripts.language_sizing                                        # as in README.md
    python -m tpu_scripts.language_sizing --utilisation 0.35 --price v5e=1.00    # your measurement, your price

Direct preference optimisation with LoRA on every dense layer of the last blocks, then group columns of TRAK, on as many
pairs as UltraFeedback has. Units and terms as of `sizing.py`.
"""

import argparse
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tpu_scripts import sizing
from tpu_scripts.sizing import Chip, number, table


class Decoder(NamedTuple):
    """Sizes of a Llama of `d3mjax.networks.decoders`."""

    name: str
    vocabulary: int
    width: int
    blocks: int
    heads: int
    key_heads: int
    inner: int
    tied: bool

    @property
    def layers(self) -> tuple[tuple[int, int], ...]:
        """Inputs and outputs of the dense layers of a block: query, key, value, output, gate, up, down."""
        keys = self.width // self.heads * self.key_heads
        square, narrow = (self.width, self.width), (self.width, keys)
        wide, back = (self.width, self.inner), (self.inner, self.width)
        return (square, narrow, narrow, square, wide, wide, back)


DECODERS = (
    Decoder("SmolLM2, 135M", 49_152, 576, 30, 9, 3, 1536, tied=True),
    Decoder("Llama, 1B", 128_256, 2048, 16, 32, 8, 8192, tied=True),
    Decoder("Llama, 8B", 128_256, 4096, 32, 32, 8, 14_336, tied=False),
)


class Preferences(NamedTuple):
    """Pairs of responses to prompts, and what is trained and attributed."""

    pairs: int = 61_000
    targets: int = 2000
    tokens: int = 1024  # of a prompt with a response
    response: int = 512
    epochs: int = 3
    adapted: int = 4  # blocks with LoRA, the last
    rank: int = 16
    groups: int = 4
    projected: int = 4096
    batch: int = 64  # pairs of a step
    microbatch: int = 4  # pairs whose gradients a chip has at a time


def parameters(decoder: Decoder) -> int:
    """Words once or twice, dense layers and two norms of each block, and the last norm."""
    block = sum(i * o for i, o in decoder.layers) + 2 * decoder.width
    return (2 - decoder.tied) * decoder.vocabulary * decoder.width + decoder.blocks * block + decoder.width


def adapters(decoder: Decoder, run: Preferences) -> int:
    """Parameters of LoRA: ``rank (inputs + outputs)`` of each layer."""
    return run.adapted * sum(run.rank * (i + o) for i, o in decoder.layers)


def block_macs(decoder: Decoder, tokens: int) -> int:
    """MAC of a text through a block: dense layers, and attention without the saving of its mask."""
    return tokens * (sum(i * o for i, o in decoder.layers) + 2 * tokens * decoder.width)


def forward_macs(decoder: Decoder, run: Preferences) -> int:
    """MAC of a text forward: all blocks, and logits of the response."""
    return decoder.blocks * block_macs(decoder, run.tokens) + run.response * decoder.vocabulary * decoder.width


def gradient_flops(decoder: Decoder, run: Preferences) -> int:
    """FLOP of the gradient of a pair by adapters: frozen blocks forward, adapted ones thrice, logits twice.

    Adapted blocks go backward to their inputs and to their matrices, whose gradient LoRA reads.
    """
    tokens = block_macs(decoder, run.tokens)
    frozen, adapted = (decoder.blocks - run.adapted) * tokens, 3 * run.adapted * tokens
    return 2 * 2 * (frozen + adapted + 2 * run.response * decoder.vocabulary * decoder.width)


def training_flops(decoder: Decoder, run: Preferences) -> int:
    """FLOP of reference log-probabilities, once, and of all epochs."""
    reference = run.pairs * 2 * 2 * forward_macs(decoder, run)
    return reference + run.epochs * run.pairs * gradient_flops(decoder, run)


def attribution_flops(decoder: Decoder, run: Preferences) -> int:
    """FLOP of `trak.group_scores` of one checkpoint: gradients, a forward pass with tangents, the Gram, as in `D3M`."""
    forward = 2 * 2 * forward_macs(decoder, run)
    gradients = (run.pairs + run.targets) * gradient_flops(decoder, run)
    tangents = run.pairs * (1 + run.groups) * forward
    return gradients + tangents + 12 * run.pairs * run.projected**2


def states_bytes(decoder: Decoder, run: Preferences) -> int:
    """Bytes of the float32 states of both sides of every pair before the adapted blocks, if they are kept."""
    return run.pairs * 2 * run.tokens * decoder.width * 4


def working_bytes(decoder: Decoder, run: Preferences, shares: int) -> int:
    """Bytes on each of ``shares`` chips along `model`: float32 parameters, LoRA's state, and a microbatch.

    Of a text the adapted blocks keep bfloat16 inputs and outputs of their layers, and attention before and after the
    softmax; the frozen ones keep nothing. A gradient of an example has the full matrices that LoRA reads.
    """
    layers = sum(i + o for i, o in decoder.layers) + 2 * decoder.heads * run.tokens
    kept = 2 * run.adapted * run.tokens * layers
    matrices = 4 * run.adapted * sum(i * o for i, o in decoder.layers)
    logits = 4 * run.response * decoder.vocabulary
    of_pairs = run.microbatch * (2 * kept + matrices + 2 * logits)
    return -(-(4 * parameters(decoder) + of_pairs) // shares) + 12 * adapters(decoder, run)


def smallest_model_axis(decoder: Decoder, run: Preferences, chip: Chip, *, filled: float = 0.8) -> int:
    """The smallest power of two of chips along `model` that have room for the work, filled to 80 %."""
    shares = 1
    while working_bytes(decoder, run, shares) > filled * chip.memory:
        shares *= 2
    return shares


def tables(utilisation: float, prices: Mapping[str, float]) -> str:
    """Both tables as markdown; arguments as of `sizing.tables`."""
    run = Preferences()

    def sizes(decoder: Decoder) -> dict[str, str]:
        return {
            "decoder": decoder.name,
            "parameters": f"{parameters(decoder):,}",
            "LoRA": f"{adapters(decoder, run):,}",
            "forward, GMAC a text": number(forward_macs(decoder, run) / 1e9),
            "gradient, TFLOP a pair": number(gradient_flops(decoder, run) / 1e12),
            "training, FLOP": number(training_flops(decoder, run)),
            "columns, FLOP a checkpoint": number(attribution_flops(decoder, run)),
            "states if kept, TB": number(states_bytes(decoder, run) / 1e12),
        }

    def costs(decoder: Decoder, chip: Chip) -> dict[str, str]:
        work = (training_flops(decoder, run), attribution_flops(decoder, run))
        training, columns = (sizing.chip_hours(flops, chip, utilisation) for flops in work)
        axis = smallest_model_axis(decoder, run, chip)
        total = training + columns
        return {
            "decoder": decoder.name,
            "chip": chip.name,
            "chips along `model`": f"{axis}",
            "memory a chip, GB": number(working_bytes(decoder, run, axis) / 1e9),
            "chip-hours, training": number(training),
            "chip-hours, columns": number(columns),
            "cost": number(total * prices[chip.name]) if chip.name in prices else f"{number(total)} P",
        }

    rows = [costs(decoder, chip) for decoder in DECODERS for chip in sizing.CHIPS]
    return "\n\n".join((table([sizes(decoder) for decoder in DECODERS]), table(rows)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizing.add_options(parser)
    options = sizing.checked_options(parser, arguments)
    print(tables(options.utilisation, dict(options.price)))


if __name__ == "__main__":
    main()
