"""Memory of a training step at full size, by XLA's own count; compiles, executes nothing. Prints a table of README.md.

    python -m tpu_scripts.step_memory            # for the devices that JAX sees

ResNet-50 at 224 px with SGD, batch 128, and BERT-base at 128 tokens with AdamW, batch 32, each in float32 and bfloat16.
State is what goes in and comes out: variables and the optimizer's. Temporary is what the step needs beside it:
activations, gradients, and copies that the compiler makes. Another device has another compiler: the count for CPUs is
an estimate for accelerators.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from d3mjax.networks import resnets, transformers
from d3mjax.training import objectives, sampling
from d3mjax.training.trainer import make_trainer
from d3mjax.types import Model, Split
from tpu_scripts import sizing


def step_memory(model: Model, tx: optax.GradientTransformation, x: Any) -> dict[str, int]:
    """Bytes of the arguments, the outputs and the temporary buffers of a step on the batch ``x`` of shapes.

    The state is donated, so the new one lies where the old one did.
    """
    (size,) = {leaf.shape[0] for leaf in jax.tree.leaves(x)}
    trainer = make_trainer(model, objectives.cross_entropy(), tx, sampling.shuffled(), batch_size=size)
    state = jax.eval_shape(trainer.init, jax.random.key(0), x)
    column: Any = jax.ShapeDtypeStruct((size,), np.int32)
    split, weights = Split(x, column, column, column), jax.ShapeDtypeStruct((size,), np.float32)
    step = jax.jit(lambda state, split, weights: trainer.run(state, split, weights, 1)[0], donate_argnums=0)
    memory = step.lower(state, split, weights).compile().memory_analysis()
    if memory is None:
        raise ValueError(f"devices: {jax.default_backend()} has no memory analysis")
    arguments, temporary = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    batch = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(x))
    return {"state": arguments - batch, "batch": batch, "temporary": temporary, "total": arguments + temporary}


def image_batch(size: int, pixels: int) -> jax.ShapeDtypeStruct:
    """Shapes of normalised images."""
    return jax.ShapeDtypeStruct((size, pixels, pixels, 3), np.float32)


def token_batch(size: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of tokens."""
    kinds = {"ids": np.int32, "types": np.int32, "mask": np.bool_}
    return {name: jax.ShapeDtypeStruct((size, length), kind) for name, kind in kinds.items()}


def table(row: Callable[..., dict[str, int]] = step_memory) -> str:
    """The table as markdown, in GB."""
    rows = []
    sgd, adamw = optax.sgd(1e-3, momentum=0.9), optax.adamw(2e-5)
    for dtype in (jnp.float32, jnp.bfloat16):
        resnet = resnets.classifier(resnets.RESNET50._replace(dtype=dtype), 2)
        bert = transformers.classifier(transformers.BERT_BASE._replace(dtype=dtype), 3)
        kind = jnp.dtype(dtype).name
        sizes = {f"ResNet-50, 224 px, batch 128, SGD, {kind}": row(resnet, sgd, image_batch(128, 224))}
        sizes |= {f"BERT-base, 128 tokens, batch 32, AdamW, {kind}": row(bert, adamw, token_batch(32, 128))}
        for name, parts in sizes.items():
            rows.append({"step": name} | {f"{part}, GB": sizing.number(value / 1e9) for part, value in parts.items()})
    return sizing.table(rows)


if __name__ == "__main__":
    print(table())
