"""The public PyTorch TRAK library, for the TRAK benchmark; runs in an environment of its own and prints one JSON line.

Reads arrays and the checkpoints' parameters from an `.npz` file, so that both sides attribute the same thing. Called by
`python -m experiments.bench`, never imported:

    python -P torch_trak.py time ARRAYS.npz '{"p": 512, "batch": 1000, "repeats": 1}'
    python -P torch_trak.py scores ARRAYS.npz '{"out": "SCORES.npy", "checkpoints": 1, ...}'

The second stores the scores [n t] without projection. Both run in float32, where the library's default is float16. `-P`
keeps the folder of this file, which holds a `trak.py` of ours, out of the way of the library's `trak`.
"""

import importlib.metadata
import json
import resource
import sys
import tempfile
import time

import numpy as np
import torch
from torch import nn
from trak import TRAKer
from trak.projectors import NoOpProjector


def load(path):
    """The two splits as pairs of tensors, and the state dictionary of each checkpoint."""
    with np.load(path) as file:
        a = {name: torch.from_numpy(file[name]) for name in file.files}
    states = [
        {"0.weight": w0.T.contiguous(), "0.bias": b0, "2.weight": w1.T.contiguous(), "2.bias": b1}
        for w0, b0, w1, b1 in zip(a["w0"], a["b0"], a["w1"], a["b1"], strict=True)
    ]
    return (a["x"], a["y"].long()), (a["x_target"], a["y_target"].long()), states


def attribute(train, target, states, directory, batch, **options):
    """Seconds of wall time and of all cores, and scores ``[n t]``, from featurizing to the finished matrix."""
    (inputs, hidden), classes = states[0]["0.weight"].T.shape, states[0]["2.bias"].shape[0]
    model = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, classes))
    traker = TRAKer(
        model=model,
        task="image_classification",
        train_set_size=len(train[0]),
        save_dir=directory,
        device="cpu",
        use_half_precision=False,
        logging_level=100,
        **options,
    )
    begin, cpu = time.perf_counter(), time.process_time()
    for j, state in enumerate(states):
        traker.load_checkpoint(state, model_id=j)
        for part in zip(*(a.split(batch) for a in train), strict=True):
            traker.featurize(list(part), num_samples=len(part[0]))
    traker.finalize_features()
    for j, state in enumerate(states):
        traker.start_scoring_checkpoint(exp_name="bench", checkpoint=state, model_id=j, num_targets=len(target[0]))
        for part in zip(*(a.split(batch) for a in target), strict=True):
            traker.score(list(part), num_samples=len(part[0]))
    scores = np.array(traker.finalize_scores(exp_name="bench"))
    return time.perf_counter() - begin, time.process_time() - cpu, scores


def main():
    mode, path, settings = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    train, target, states = load(path)
    versions = {"torch": torch.__version__, "traker": importlib.metadata.version("traker")}
    result = {**versions, "threads": torch.get_num_threads()}
    if mode == "scores":
        options = {"grad_wrt": settings["grad_wrt"], "lambda_reg": settings["lambda_reg"]}
        states = states[: settings["checkpoints"]]
        with tempfile.TemporaryDirectory() as directory:
            projector = NoOpProjector(device="cpu")
            _, _, scores = attribute(train, target, states, directory, len(train[0]), projector=projector, **options)
        np.save(settings["out"], scores)
    else:
        result["seconds"], result["cpu_seconds"] = [], []
        # The first, a small one, is the warm-up; at 100 or below the projector fails once its memory was freed.
        for p in (128, *[settings["p"]] * settings["repeats"]):
            with tempfile.TemporaryDirectory() as directory:
                seconds, cpu, _ = attribute(train, target, states, directory, settings["batch"], proj_dim=p)
            result["seconds"].append(seconds)
            result["cpu_seconds"].append(cpu)
        del result["seconds"][0], result["cpu_seconds"][0]
    result["peak_memory_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(result))


if __name__ == "__main__":
    main()
