"""The machine that computes: which device, in which precision, with which random numbers."""

import contextlib
import os
import random
import sys

import numpy as np
import torch


def pick_device(name: str) -> torch.device:
    """Returns the torch.device called `name`; missing CUDA becomes the CPU, with a line.

    Raises ValueError for a name that torch does not know, and for missing MPS.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        mps = torch.backends.mps.is_available()
        return torch.device("mps" if mps else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"--device {name!r} is not auto, cpu, cuda, cuda:N or mps") from None
    there = {
        "cpu": True,
        "cuda": (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if device.type not in there:
        raise ValueError(f"--device {name!r} is not auto, cpu, cuda, cuda:N or mps")
    if device.type == "mps" and not there["mps"]:
        raise ValueError(f"--device {name}: torch finds no GPU of Apple here; give auto or cpu")
    if not there[device.type]:
        print(f"warning: there is no {name} here; using the CPU", file=sys.stderr)
        return torch.device("cpu")
    return device


def default_workers(local_size: int = 1) -> int:
    """Returns how many decoding processes suit each of `local_size` processes of this machine.

    Its share of the usable cores, at most 8.
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min((usable or 1) // local_size, 8))


def amp_dtype(choice: str, device: torch.device) -> torch.dtype | None:
    """Returns the autocast type for `--amp`, or None for full precision.

    Raises ValueError for float16 on a CPU, where autocast would be slower than float32.
    """
    if choice == "off":
        return None
    if choice == "bf16":
        return torch.bfloat16
    if choice == "fp16":
        if device.type == "cpu":
            raise ValueError("--amp fp16 needs a GPU; on a CPU use --amp bf16 or auto")
        return torch.float16
    if device.type == "cuda":
        # Emulated bfloat16 is slow: ask for the hardware's own.
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if has_bf16 else torch.float16
    if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported():
        return torch.bfloat16
    return None


def autocast(device: torch.device, dtype: torch.dtype | None):
    """Returns the mixed-precision context, or one that does nothing when `dtype` is None."""
    if dtype is None:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def make_deterministic() -> None:
    """Has torch compute the same bits whenever it computes the same again, on a GPU too.

    To be called before the GPU is first used.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or cuBLAS refuses
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    # Of the attention's ways back, flash attention's and plain mathematics are.
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.enable_cudnn_sdp(False)


def seed_everything(seed: int) -> None:
    """Seeds the generators of Python, NumPy and torch, all devices."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def rng_state() -> dict:
    """Returns the state of every generator as tensors and plain Python, fit for a checkpoint."""
    version, internal, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    state = {
        "python": [version, list(internal), gauss],
        "numpy": [kind, torch.from_numpy(keys.astype("int64")), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_rng_state(state: dict) -> None:
    """Puts every generator back into the state that `rng_state` returned."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype("uint32"), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all(state["cuda"])
