"""The same MLP on MNIST when the first layer may drop pixels too, as Structured Sparsity Learning lets it.

python examples/mnist_mlp.py train
python examples/mnist_mlp_inputs.py compress
python examples/mnist_mlp_inputs.py table
"""

from dataclasses import replace

from experiment import commands
from mnist_mlp import EXPERIMENT as HIDDEN_ONLY

EXPERIMENT = replace(
    HIDDEN_ONLY,
    name="mnist_mlp_inputs",
    title="MLP 784-500-300-10, MNIST, pixels too",
    prune_inputs=("layers.0",),
    bases=HIDDEN_ONLY.name,
)

if __name__ == "__main__":
    commands(EXPERIMENT)()
