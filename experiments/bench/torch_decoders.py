"""PyTorch's side of the parity of decoders; runs in an environment of its own and prints one JSON line.

A decoder of transformers with random weights, or the one of a GGUF file: its config, tokens, logits, log-probabilities
of responses and their gradient, as files of a directory. Called by `python -m experiments.bench --only decoders`, never
imported.
"""

import hashlib
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

# As in torch_parity.py.
if not hasattr(torch.ops.torchvision, "nms"):
    OPERATORS = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        OPERATORS.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import gguf
import transformers


def network(task):
    sizes = task["sizes"]
    names = {"vocab_size": "vocabulary", "hidden_size": "width", "num_hidden_layers": "blocks"}
    names |= {"num_attention_heads": "heads", "max_position_embeddings": "positions"}
    if task["kind"] == "gpt2":
        config = transformers.GPT2Config(n_inner=sizes["inner"], **{name: sizes[ours] for name, ours in names.items()})
    else:
        names |= {"num_key_value_heads": "key_heads", "intermediate_size": "inner", "rms_norm_eps": "epsilon"}
        names |= {"tie_word_embeddings": "tied"}
        rotary = task["rotary"] or {"rope_type": "default", "rope_theta": sizes["base"]}
        given = {name: sizes[ours] for name, ours in names.items()}
        config = transformers.LlamaConfig(**given, rope_parameters=rotary)
    net = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for tensor in net.state_dict().values():
            if tensor.ndim == 1:  # at 0 or 1 in a fresh network
                tensor.add_(0.1 * torch.randn_like(tensor))
    return net


def random_tokens(task):
    length = task["length"]
    lengths, at = torch.randint(2, length + 1, (task["batch"], 1)), torch.arange(length)[None]
    ids = torch.randint(0, task["sizes"]["vocabulary"], (task["batch"], length))
    return {"ids": ids, "mask": at < lengths, "response": (at >= lengths // 2) & (at < lengths)}


def tokens_of(texts, tokenizer):
    rows = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    lengths, at = torch.tensor([len(row) for row in rows])[:, None], torch.arange(max(map(len, rows)))[None]
    ids = torch.tensor([row + [0] * (at.shape[1] - len(row)) for row in rows])
    return {"ids": ids, "mask": at < lengths, "response": (at > 0) & (at < lengths)}


def digests(path):
    """SHA-256 of the values of every tensor of a GGUF file, in float32."""
    made = {}
    for tensor in gguf.GGUFReader(path).tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        made[str(tensor.name)] = hashlib.sha256(values.astype("<f4").tobytes()).hexdigest()
    return made


def main():
    task, directory = json.loads(sys.argv[1]), Path(sys.argv[2])
    torch.manual_seed(0)
    if task["gguf"]:
        path = Path(task["gguf"])
        options = {"gguf_file": path.name, "dtype": torch.float32}
        net = transformers.AutoModelForCausalLM.from_pretrained(path.parent, **options)
        x = tokens_of(task["texts"], transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name))
        (directory / "digests.json").write_text(json.dumps(digests(path)))
    else:
        net, x = network(task), random_tokens(task)
        (directory / "config.json").write_text(json.dumps(net.config.to_dict()))
        tied = {"lm_head.weight"} if net.config.tie_word_embeddings else set()
        named = {name: tensor.contiguous() for name, tensor in net.state_dict().items() if name not in tied}
        save_file(named, directory / "before.safetensors")
    net.eval()
    logits = net(input_ids=x["ids"], attention_mask=x["mask"].long()).logits
    log_shares = torch.log_softmax(logits[:, :-1], -1).gather(2, x["ids"][:, 1:, None])[:, :, 0]
    sums = torch.where(x["response"][:, 1:], log_shares, 0).sum(1)
    if not task["gguf"]:
        sums.mean().backward()
        gradients = {name: parameter.grad.contiguous() for name, parameter in net.named_parameters()}
        save_file(gradients, directory / "gradient.safetensors")
    save_file({**x, "logits": logits.detach(), "sums": sums.detach()}, directory / "batch.safetensors")
    print(json.dumps({module.__name__: module.__version__ for module in (torch, transformers)}))


if __name__ == "__main__":
    main()
