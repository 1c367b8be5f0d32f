#!/usr/bin/env python3
"""One operator in plain torch, on numbers of case.json beside this file, against the f64 result that stands there.

    python3 repro_torch.py [--device cpu|cuda:0|npu:0|xpu:0|mps] [--repeat N]

Exit code 0: every element lies within its bound; 1: it does not; 2: it could not be run. It needs torch and nothing else
(and torch_npu for npu devices).
"""

import argparse
import json
import math
import os
import sys

import torch


def unsupported(operator, reason, dtype=None, shape=()):
    return RuntimeError(f"{operator}: {reason}")
