"""The training loop and its stages.

stages.py          a stage, and the Trainer that runs a chain of them
loop.py, step.py   the loop; the losses of a batch and one update
validation.py      losses of the validation split
state.py           the state that is trained, and fresh parameters
optimizer.py       the optimizer and its schedule
weights.py         where a stage's parameters come from: checkpoints by name, bases of adapters
merged.py          the whole weights of a checkpoint, adapters merged, a part at a time
pretrained.py      weights that `calrec convert` brought from elsewhere
conversion.py      how it brings them, and writes them for others
t5x_io.py          checkpoints that T5X wrote
manifest.py        manifest.json, and who trains in a MODEL_DIR
identity.py        what weights belong to
telemetry.py       what is logged: metrics_file.py, progress_line.py, TensorBoard
divergence.py      what is kept of a training whose numbers are not finite
preemption.py      being stopped, with everything saved
processes.py       what the first of several processes does for all
"""
