"""The benchmarks by number."""

from __future__ import annotations

from benchmarks.bench import Case
from benchmarks.cases import head_accuracy, head_backward, head_forward, masked_rows, one_pass

CPU = {
    "C1": Case(title="log-prob and entropy, forward", run=head_forward.run),
    "C2": Case(title="log-prob and entropy, forward and backward", run=head_backward.run),
    "C3": Case(title="clipped surrogate in one pass", run=one_pass.run),
    "C4": Case(title="masked rows and rows without a gradient", run=masked_rows.run),
    "C12": Case(title="errors against float64", run=head_accuracy.run),
}
GPU = {
    "G1": Case(title="log-prob and entropy, forward", run=head_forward.run),
    "G2": Case(title="log-prob and entropy, forward and backward", run=head_backward.run),
    "G3": Case(title="clipped surrogate in one pass", run=one_pass.run),
}
SUITES = {"cpu": CPU, "gpu": GPU}
