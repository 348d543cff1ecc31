"""PyTorch's side of the model-training benchmark; runs in an environment of its own and prints one JSON line.

On a GPU if PyTorch sees one, with matrix products in TF32, which is what JAX does there by default.

A plain loop over models, and `torch.func.vmap` over models at several widths, on the same task: an MLP or a CNN
trained by SGD with momentum on a random half of the examples. Called by `python -m experiments.bench`, never imported.
"""

import json
import math
import sys
import time
from pathlib import Path

import torch
from torch import func, nn

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
torch.set_default_device(DEVICE)
if DEVICE.type == "cuda":
    torch.set_float32_matmul_precision("high")


def network(task):
    if task["channels"]:
        return cnn(task)
    return nn.Sequential(
        nn.Linear(task["inputs"], task["hidden"]), nn.ReLU(), nn.Linear(task["hidden"], task["classes"])
    )


def cnn(task):
    before, layers = task["colours"], []
    side = math.isqrt(task["inputs"] // before)
    layers.append(nn.Unflatten(1, (before, side, side)))
    for width in task["channels"]:
        layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2)]
        before = width
    features = before * (side >> len(task["channels"])) ** 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, task["classes"]))


def order(task, generator):
    """Indices [steps, batch] into a fresh random half of the examples, reshuffled every epoch."""
    half = torch.randperm(task["examples"], generator=generator)[: task["examples"] // 2]
    epochs = -(-task["steps"] * task["batch"] // len(half))
    shuffled = [half[torch.randperm(len(half), generator=generator)] for _ in range(epochs)]
    return torch.cat(shuffled)[: task["steps"] * task["batch"]].reshape(task["steps"], task["batch"])


def loop(task, x, y, num_models):
    generator = torch.Generator(DEVICE).manual_seed(0)
    outputs = []
    for _ in range(num_models):
        model = network(task)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, task["steps"])
        for index in order(task, generator):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[index]), y[index]).backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            outputs.append(model(x[:200]))
    return outputs


def vmapped(task, x, y, num_models, width):
    generator = torch.Generator(DEVICE).manual_seed(0)
    skeleton = network(task)
    loss = lambda p, xb, yb: nn.functional.cross_entropy(func.functional_call(skeleton, p, (xb,)), yb)
    gradient = func.vmap(func.grad(loss))
    for _ in range(num_models // width):
        params, _ = func.stack_module_state([network(task) for _ in range(width)])
        params = {name: p.detach() for name, p in params.items()}
        velocity = {name: torch.zeros_like(p) for name, p in params.items()}
        index = torch.stack([order(task, generator) for _ in range(width)])
        for s in range(task["steps"]):
            batch = index[:, s]
            grads = gradient(params, x[batch], y[batch])
            rate = 0.05 * (1 - s / task["steps"])
            for name, p in params.items():
                velocity[name].mul_(0.9).add_(grads[name] + 1e-3 * p)
                p.sub_(velocity[name], alpha=rate)
        func.vmap(lambda p: func.functional_call(skeleton, p, (x[:200],)))(params)


def rate(run, num_models, repeats):
    """Models per second, one figure a repeat, after one warm-up."""
    figures = []
    for i in range(repeats + 1):
        begin = time.perf_counter()
        run()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        figures.append(num_models / (time.perf_counter() - begin))
        del figures[: i == 0]
    return figures


def main():
    task = json.loads(sys.argv[1])
    torch.manual_seed(0)
    x = torch.randn(task["examples"], task["inputs"])
    y = torch.randint(task["classes"], (task["examples"],))
    count, repeats = task["loop_models"], task["repeats"]
    rates = {"PyTorch loop over models": rate(lambda: loop(task, x, y, count), count, repeats)}
    for width in task["widths"]:
        timed = rate(lambda w=width: vmapped(task, x, y, w, w), width, repeats)
        rates[f"torch.func.vmap, width {width}"] = timed
    # Not getrusage: its maximum includes the parent's memory at the moment of the fork.
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    memory = int(peak.split()[1]) / 1024
    facts = {"peak_memory_mib": memory, "torch": torch.__version__, "threads": torch.get_num_threads()}
    print(json.dumps({"rates": rates, **facts}))


if __name__ == "__main__":
    main()
