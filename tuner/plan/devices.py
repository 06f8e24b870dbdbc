"""The devices a plan can be made for without being there: memory, matrix rate, bandwidth and power as their vendors state them.

Data sheets: NVIDIA H200 (2024), H100 (2023), A100 (2021), L40S (2023), L4 (2023), T4 (2019), the Ada and Ampere GA102 architecture papers for the
GeForce 4090 and 3090 (tensor rate with fp32 accumulation, dense), Blackwell B200 (2024), AMD MI300X (2023). Rates are dense: the sheets of Ada and
Hopper print them with sparsity, twice as high. It refuses a name that is not in the table.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tuner.catalog import choose

GIB = 2**30
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Device:
    """One accelerator. `share` is the part of `flops` a training step reaches; `share_how` says whether that was measured or assumed."""

    name: str
    memory_bytes: int
    flops: float
    bandwidth: float
    watts: float | None
    bf16: bool = True
    share: float = 0.43
    share_how: str = "assumed as on an H200"

    @property
    def rate(self) -> float:
        """FLOP a second that a training step is expected to reach."""
        return self.flops * self.share


# Measured on an H200, 8.03 B bf16 LoRA, packed 8 x 2,048: 13,400 tokens/s of 4 N FLOP, 58 % of the 738 TFLOP/s a matrix product reached there,
# which is 43 % of the data sheet's 989 (recipes/LOG.md).
def this_machine(device: str) -> Device:
    """The device this process would train on, its memory as the driver or the system says, its rate from the table where it is known."""
    import torch

    if device == "cpu":
        return Device(f"cpu ({os.cpu_count()} cores)", usable_memory(), DEVICES["cpu"].flops, DEVICES["cpu"].bandwidth, None, True, 0.3, "timed instead")
    properties = torch.cuda.get_device_properties(device)
    known = known_as(properties.name, properties.total_memory)
    if known is None:
        return Device(properties.name, properties.total_memory, 0.0, 0.0, None, torch.cuda.is_bf16_supported(), 0.43, "timed instead")
    like = DEVICES[known]
    return Device(properties.name, properties.total_memory, like.flops, like.bandwidth, like.watts, like.bf16, like.share, like.share_how)


def known_as(name: str, memory_bytes: int) -> str | None:
    """The table's key for a driver's name of a GPU: the entry whose letters and digits it contains, of the size nearest to `memory_bytes`."""
    words = name.lower().replace("-", " ").split()
    found = [key for key in DEVICES if key.split("-")[0] in words]
    return min(found, key=lambda key: abs(DEVICES[key].memory_bytes - memory_bytes), default=None)


def named(names: Sequence[str], where: str = "--gpu") -> list[Device]:
    """Entries of the table. Raises Refusal for a name it does not hold."""
    return [choose(DEVICES, name.strip().lower(), where, "device") for name in names]


def usable_memory() -> int:
    """Bytes that a process may take here: all the machine has, or what its control group allows.

    Not what is free this moment: a run must pick the same way again when it goes on after an interruption.
    """
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        words = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return whole
    return min(whole, int(words)) if words.isdigit() else whole


DEVICES: dict[str, Device] = {
    "b200": Device("B200", 180 * GIB, 2250e12, 8.0e12, 1000),
    "h200": Device("H200", 143771 * MIB, 989e12, 4.8e12, 700, share_how="measured: 13,400 tokens/s on an 8 B base, 58 % of 738 TFLOP/s"),
    "h100-80": Device("H100 80 GB", 81559 * MIB, 989e12, 3.35e12, 700),
    "a100-80": Device("A100 80 GB", 81920 * MIB, 312e12, 2.04e12, 400),
    "a100-40": Device("A100 40 GB", 40960 * MIB, 312e12, 1.56e12, 400),
    "l40s": Device("L40S", 46068 * MIB, 362e12, 0.864e12, 350),
    "l4": Device("L4", 23034 * MIB, 121e12, 0.3e12, 72),
    "4090": Device("GeForce RTX 4090", 24564 * MIB, 165e12, 1.01e12, 450),
    "3090": Device("GeForce RTX 3090", 24576 * MIB, 71e12, 0.936e12, 350),
    "t4": Device("T4", 15360 * MIB, 65e12, 0.32e12, 70, bf16=False, share_how="assumed as on an H200; it multiplies fp16, not bf16"),
    "mi300x": Device("MI300X", 192 * GIB, 1307e12, 5.3e12, 750),
    "cpu": Device("cpu (2 cores with AVX512-bf16)", 16 * GIB, 1e12, 40e9, None, share=0.3, share_how="measured on 2 cores of an EPYC Zen 5 (recipes/LOG.md)"),
}
