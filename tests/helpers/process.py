"""What a probe may change nowhere in the process, as something that can be compared."""

import locale
import logging
import os
import random
import signal
import sys
import threading
import warnings

import matplotlib
import numpy as np
import torch
from torch.nn.modules import module as global_hooks

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE, signal.SIGALRM, signal.SIGUSR1)
GLOBAL_HOOKS = (
    "_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks",
    "_global_backward_pre_hooks", "_global_forward_hooks_always_called",
    "_global_forward_hooks_with_kwargs",
)  # fmt: skip


def state():
    """Random states, torch's switches, warnings, drawing, signals and what libraries patch."""
    cuda, mha = torch.backends.cuda, torch.backends.mha
    return {
        "python rng": random.getstate(),
        "numpy rng": [part.tolist() if isinstance(part, np.ndarray) else part
                      for part in np.random.get_state()],  # noqa: NPY002
        "torch rng": torch.get_rng_state().tolist(),
        "torch seed": torch.initial_seed(),
        "grad": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(),
                 torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu"),
                     torch.is_autocast_cache_enabled(), torch.is_autocast_enabled("cuda")),
        "deterministic": (torch.are_deterministic_algorithms_enabled(),
                          torch.is_deterministic_algorithms_warn_only_enabled(),
                          torch.utils.deterministic.fill_uninitialized_memory,
                          torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark),
        "precision": (torch.get_default_dtype(), torch.get_float32_matmul_precision(),
                      torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32),
        "device": torch.get_default_device(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "attention": (mha.get_fastpath_enabled(), cuda.flash_sdp_enabled(),
                      cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled(),
                      cuda.cudnn_sdp_enabled()),
        "stance": torch._dynamo.eval_frame._stance.stance,
        "torch printing": vars(torch._tensor_str.PRINT_OPTS).copy(),
        "global hooks": {name: dict(getattr(global_hooks, name)) for name in GLOBAL_HOOKS},
        "patched": (torch.Tensor.backward, torch.autograd.backward, torch.nn.Module.__call__,
                    torch.nn.Module.__setattr__, hasattr(object(), "save")),
        "warnings": list(warnings.filters),
        "numpy errors": (np.geterr(), np.get_printoptions()),
        "drawing": dict.copy(matplotlib.rcParams),  # of a dict: its own copy resolves the backend
        "signals": {name: signal.getsignal(name) for name in SIGNALS},
        "handlers": (logging.getLogger().level, list(logging.getLogger().handlers)),
        "interpreter": (sys.excepthook, sys.displayhook, threading.excepthook, sys.gettrace(),
                        sys.getrecursionlimit(), sys.getswitchinterval(), sys.stdout, sys.stderr),
        "environment": dict(os.environ),
        "locale": locale.setlocale(locale.LC_ALL),
        "folder": os.getcwd(),
    }  # fmt: skip


def changed(before):
    """Names of what is now otherwise, with both values: an empty dict where nothing is."""
    after = state()
    return {name: (value, after[name]) for name, value in before.items() if after[name] != value}
