"""ResNet-20 on CIFAR-10: the ResNet-56 experiment in short, for a machine without a GPU.

    python examples/cifar10_resnet20.py compress --weights resnet20.th
    python examples/cifar10_resnet20.py table

`train` makes a base where there is none.
"""

from dataclasses import replace

from cifar10_resnet56 import EXPERIMENT as RESNET56
from experiment import commands

EXPERIMENT = replace(
    RESNET56,
    name="cifar10_resnet20",
    title="ResNet-20, CIFAR-10",
    arch="resnet20_cifar",
    ratios=(0.5, 0.7),
    seeds=1,
    finetuning=replace(RESNET56.finetuning, epochs=5),
    published=(),
)

if __name__ == "__main__":
    commands(EXPERIMENT)()
