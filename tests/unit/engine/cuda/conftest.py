"""Kernels run on the CPU here, by Triton's interpreter: it must be asked for before they are defined."""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"
