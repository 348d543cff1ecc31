"""PyTorch's side of the parity check; runs in an environment of its own and prints one JSON line.

For every network: random weights, inputs, logits in evaluation, and the weights after one training step, as safetensors
files of a directory. Called by `python -m experiments.bench --only parity`, never imported.
"""

import copy
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

# Compiled operators of torchvision may be missing beside a PyTorch for CPUs; networks need none, but its import does.
if not hasattr(torch.ops.torchvision, "nms"):
    OPERATORS = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        OPERATORS.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import torchvision
import transformers


def network(task):
    """Logits of three classes, without dropout."""
    if task["kind"] == "resnet":
        return torchvision.models.get_model(task["published"], num_classes=3)
    sizes, dropout = task["sizes"], {"num_labels": 3, "attn_implementation": "eager"}
    if task["kind"] == "distilbert":
        names = {"vocab_size": "vocabulary", "dim": "width", "n_layers": "blocks", "n_heads": "heads"}
        names |= {"hidden_dim": "inner", "max_position_embeddings": "positions"}
        dropout |= {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0}
        config = transformers.DistilBertConfig(**{name: sizes[ours] for name, ours in names.items()}, **dropout)
        return transformers.DistilBertForSequenceClassification(config)
    names = {"vocab_size": "vocabulary", "hidden_size": "width", "num_hidden_layers": "blocks"}
    names |= {"num_attention_heads": "heads", "intermediate_size": "inner", "max_position_embeddings": "positions"}
    dropout |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = transformers.BertConfig(**{name: sizes[ours] for name, ours in names.items()}, **dropout)
    return transformers.BertForSequenceClassification(config)


def randomise(net):
    """Values that a fresh network has at 0 or 1 become random, so that none of them can be mixed up."""
    for name, tensor in net.state_dict().items():
        if name.endswith("running_var"):
            tensor.mul_(torch.exp(0.1 * torch.randn_like(tensor)))
        elif tensor.ndim == 1:
            tensor.add_(0.1 * torch.randn_like(tensor))


def inputs(task, count):
    if task["kind"] == "resnet":
        return {"x": torch.randn(count, task["pixels"], task["pixels"], 3)}
    length = task["length"]
    ids = torch.randint(1, task["sizes"]["vocabulary"], (count, length))  # PyTorch does not train row 0, of padding
    types = (torch.arange(length) > length // 2).long().expand(count, length)
    lengths = torch.randint(2, length + 1, (count, 1))
    return {"ids": ids, "types": types.contiguous(), "mask": torch.arange(length)[None] < lengths}


def logits(task, net, x):
    if task["kind"] == "resnet":
        return net(x["x"].permute(0, 3, 1, 2))
    tokens = {"input_ids": x["ids"], "attention_mask": x["mask"].long()}
    if task["kind"] == "bert":
        tokens["token_type_ids"] = x["types"]
    return net(**tokens).logits


def optimizer(name, parameters):
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=0.01, momentum=0.9)
    return torch.optim.AdamW(parameters, lr=2e-5, weight_decay=0.01)


def copied(net):
    return {name: tensor.clone().contiguous() for name, tensor in net.state_dict().items()}


def stepped(task, net, x, y, name):
    """The network after one training step, in place."""
    net.train()
    update = optimizer(name, net.parameters())
    update.zero_grad()
    nn.functional.cross_entropy(logits(task, net, x), y).backward()
    update.step()
    return net


def rounding(task, net, before, x, y):
    """Length of what float32 changes in the step of SGD, in units of the step in float64."""
    flat = lambda parameters: torch.cat([parameter.detach().double().flatten() for parameter in parameters])
    net.load_state_dict(before)
    single = flat(stepped(task, net, x, y, "sgd").parameters())
    net.load_state_dict(before)
    start, double = flat(net.parameters()), copy.deepcopy(net).double()
    x = {name: a.double() if a.is_floating_point() else a for name, a in x.items()}
    exact = flat(stepped(task, double, x, y, "sgd").parameters())
    return float((single - exact).norm() / (start - exact).norm())


def main():
    task, directory = json.loads(sys.argv[1]), Path(sys.argv[2])
    torch.manual_seed(0)
    net = network(task)
    with torch.no_grad():
        randomise(net)
    before, x = copied(net), inputs(task, count=task["batch"])
    y = torch.arange(task["batch"]) % 3
    net.eval()
    with torch.no_grad():
        expected = {"logits": logits(task, net, x)}
    save_file(before, directory / "before.safetensors")
    save_file({**x, "y": y, **expected}, directory / "batch.safetensors")
    for name in task["optimizers"]:
        net.load_state_dict(before)
        save_file(copied(stepped(task, net, x, y, name)), directory / f"{name}.safetensors")
    versions = {module.__name__: module.__version__ for module in (torch, torchvision, transformers)}
    print(json.dumps({**versions, "rounding": rounding(task, net, before, x, y)}))


if __name__ == "__main__":
    main()
