"""MLP 784-500-300-10 on MNIST, 87 to 96 % of its parameters removed (experiment 1 of the MINT paper).

python examples/mnist_mlp.py train
python examples/mnist_mlp.py compress
python examples/mnist_mlp.py table
"""

from experiment import commands
from settings import Experiment, Training

EXPERIMENT = Experiment(
    name="mnist_mlp",
    title="MLP 784-500-300-10, MNIST",
    arch="mlp",
    dataset="mnist",
    ratios=(0.872, 0.92, 0.96),
    seeds=5,
    base=Training(epochs=20, lr=0.1),
    finetuning=Training(epochs=10, lr=0.1, batch_size=256, weight_decay=1e-4, distill_weight=0.9),
    shift=1,
    published=(
        ("Structured Sparsity Learning", "83.5 %", "98.47"),
        ("Network Slimming", "84.4 %", "98.51"),
        ("MINT (masked)", "87.2 %", "98.54"),
    ),
)

if __name__ == "__main__":
    commands(EXPERIMENT)()
