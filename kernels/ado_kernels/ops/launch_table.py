"""How each kernel is launched: written by `python -m benchmarks.kernels --tune`, explained in launch.py.

Key: operation, size class (0: any size), architecture ("" for all without a row of their own).
"""

TABLE: dict[tuple[str, int, str], dict[str, int]] = {
    ("linear_cross_entropy", 0, ""): {"rows": 4096},
    ("linear_cross_entropy", 1024, ""): {"rows": 5632},
    ("rms_norm", 64, ""): {"rows": 16},
    ("rms_norm", 128, ""): {"rows": 16},
    ("rms_norm", 256, ""): {"rows": 8},
    ("rms_norm", 512, ""): {"rows": 4},
    ("rms_norm", 1024, ""): {"rows": 2},
    ("rms_norm", 2048, ""): {},
    ("rms_norm", 4096, ""): {"warps": 8},
    ("rms_norm", 8192, ""): {"warps": 16},
    ("rms_norm", 16384, ""): {"warps": 32},
    ("rms_norm", 16384, "gfx942"): {"warps": 16},
    ("rms_norm_backward", 64, ""): {"rows": 16, "stages": 3, "programs": 528},
    ("rms_norm_backward", 128, ""): {"rows": 16, "stages": 3, "programs": 528},
    ("rms_norm_backward", 256, ""): {"rows": 8, "stages": 3, "programs": 528},
    ("rms_norm_backward", 512, ""): {"rows": 4, "stages": 3, "programs": 528},
    ("rms_norm_backward", 1024, ""): {"stages": 3, "programs": 528},
    ("rms_norm_backward", 2048, ""): {"stages": 3, "programs": 528},
    ("rms_norm_backward", 4096, ""): {"warps": 8, "stages": 3, "programs": 264},
    ("rms_norm_backward", 8192, ""): {"warps": 16, "stages": 2, "programs": 132},
    ("rms_norm_backward", 16384, ""): {"warps": 32, "stages": 2, "programs": 132},
    ("rms_norm_backward", 16384, "gfx942"): {"warps": 16, "stages": 2, "programs": 132},
    ("rms_norm_rope", 64, ""): {"rows": 32},
    ("rms_norm_rope", 128, ""): {"rows": 16},
    ("rms_norm_rope", 256, ""): {"rows": 8},
    ("rms_norm_rope_backward", 64, ""): {"rows": 32, "stages": 3, "programs": 528},
    ("rms_norm_rope_backward", 128, ""): {"rows": 16, "stages": 3, "programs": 528},
    ("rms_norm_rope_backward", 256, ""): {"rows": 8, "stages": 3, "programs": 528},
    ("softmax_gradient", 0, ""): {"block": 8192, "warps": 16},
    ("swiglu", 0, ""): {},
}
